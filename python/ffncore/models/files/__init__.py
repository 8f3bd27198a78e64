"""The files of a checkpoint: config.json with its defaults, safetensors, their index."""
