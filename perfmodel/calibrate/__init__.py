"""Fits of constants to measured kernels."""
