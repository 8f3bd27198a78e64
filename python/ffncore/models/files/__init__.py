"""Readers for the files of a checkpoint: config.json, safetensors files and their index."""
