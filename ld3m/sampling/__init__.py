"""The method's chain: latents through the frozen prior to images, and the gradient back. It knows no objective."""
