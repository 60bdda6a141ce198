"""Models in pools of their own, and the way of their requests there and back."""
