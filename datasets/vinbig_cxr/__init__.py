"""VinBig-CXR (VinDr-CXR)."""
