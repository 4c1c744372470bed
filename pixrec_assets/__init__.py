"""The Dagster side of PixRec and its command line; the work itself is in `pixrec_core`."""
