"""`mipgate report`: one HTML file about a model and its variants, complete in itself."""
