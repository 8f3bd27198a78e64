"""Writing checkpoints: quantised copies of a model, as safetensors or GGUF files."""
