"""The network, trained filters, and their export."""
