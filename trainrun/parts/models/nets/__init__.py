"""Everything about the networks that needs torch: those written here, and those built from torchvision and timm."""
