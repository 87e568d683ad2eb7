"""The demo: small donors trained on the spot, then every recipe of `recipes/demo/` on them."""
