"""What a prepared set holds, and whether its splits leak; `mlvicx audit`."""
