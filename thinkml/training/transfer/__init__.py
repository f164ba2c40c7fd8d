"""Transfer learning: pretrained backbones with a new head."""
