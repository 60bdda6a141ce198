"""Declared feature engineering: one code path for training, serving and export."""
