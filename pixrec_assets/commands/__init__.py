"""The commands of `pixrec`, one file each."""
