"""Models in pools of their own: which they are, and the way of their requests there and back."""
