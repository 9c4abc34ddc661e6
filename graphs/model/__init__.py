"""The networks: text encoder, conditioning, transformer and autoencoder."""
