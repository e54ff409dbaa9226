"""End-to-end multimodal CTR training: grouped samples, one image pass per distinct picture, related task towers."""

__version__ = "0.1.0"
