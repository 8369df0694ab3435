"""What the weights of linear attention say: products, blocks of the identity, closed forms."""
