"""Models in and out of the Hugging Face format."""
