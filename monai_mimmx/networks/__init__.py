# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Encoders, the Confounder Attention Weighter and the MIMM-X network."""

from monai_mimmx.networks.attention import ConfounderAttentionWeighter
from monai_mimmx.networks.encoders import FourConvEncoder, densenet121_encoder, make_encoder
from monai_mimmx.networks.mimmx_net import MIMMXNet

__all__ = ["ConfounderAttentionWeighter", "FourConvEncoder", "MIMMXNet", "densenet121_encoder", "make_encoder"]
