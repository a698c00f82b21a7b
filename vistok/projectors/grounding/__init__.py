"""Where in a picture: similarity as points, masks, second looks, and adapters that learn to write boxes."""
