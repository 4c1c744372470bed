"""The dual tower: vision-language backbones, batches, the model itself and its checkpoints."""
