"""spacetime: text-to-video diffusion on spacetime patches, in JAX.

Dimension letters, the suffix of every array's name:

  B  batch                    f h w c  latent frames, height, width, channels
  F H W C  pixel frames, height, width, channels
  N  tokens (patches)         V  patch volume: values in one patch
  D  model width              A  attention heads       E  head size
  M  MLP width                S  text tokens           Y  text width
  K  solver steps             L  layers (stacked)

Conventions, stated once:

  video_BFHWC   float32 in [-1, 1]; as bytes (uint8, 0 to 255): frames_BFHWC
  z_Bfhwc       latents, unit scale per channel
  level t       in [0, 1]; t = 0 is data, t = 1 is noise; one per latent frame
  noising       z_t = (1 - t) * z + t * noise
  velocity      noise - z, the derivative of z_t in t
  tokens_BS     int32 text tokens; 0 pads, 1 ends the text
"""

__version__ = '0.1.0'
