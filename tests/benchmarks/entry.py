"""Content of a clip that passes the transformer's first layer.

  python tests/benchmarks/entry.py --num=48

A patch has more values than the transformer is wide, so that the first layer
lets some directions of it through and no others. Real clips are put through
that layer and back (the projection on its rows: nothing after it can tell two
clips apart that come out the same), and their steps told as ratios to those of
the clips as they are: what a network that continues a clip sees of its motion.
Then the same of other patches and numbers of principal components.
"""

import argparse

import einops
import maker as maker_lib
import numpy as np
import tqdm

from spacetime.evaluation import seams
from spacetime.models.transformer import patchify
from spacetime.training import pca_init

FITTED, SEED = 256, 77  # clips from which components are taken
TRIED = (  # patch, components
  *(((1, 8, 8), rank) for rank in (85, 128, 170)),
  *(((1, 4, 4), rank) for rank in (64, 85, 128)),
)


def main() -> None:
  """Prints a row for the model's own layer, then one for each of TRIED."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', default='digits')
  parser.add_argument('--num', type=int, default=48)
  flags = parser.parse_args()
  maker = maker_lib.Maker(flags.checkpoint)
  clips, _ = maker_lib.real(maker.world, flags.num, seed=5)
  usual = seams.within(clips)
  model = maker.pipe.engine
  dit = model.read('dit')
  patch = tuple(model.networks.dit.config.patch)
  kernel_VD = np.asarray(dit['patch_embed']['kernel'], np.float32)
  rows_VD, size_D, _ = np.linalg.svd(kernel_VD, full_matrices=False)
  # As principal.widen: what rounding to bfloat16 left in the others is none.
  own_VR = rows_VD[:, size_D > 0.03 * size_D[0]]
  trained, _ = maker_lib.real(maker.world, FITTED, seed=SEED)
  time = model.networks.autoencoder.stride[0]
  tell('own', patch, own_VR, clips, usual, time)
  for tried, rank in TRIED:
    x_BNV = np.stack([tokens(clip, tried, time) for clip in trained])
    basis_VR = pca_init.components(x_BNV, rank=rank).basis_VR
    tell('fitted', tried, basis_VR, clips, usual, time)


def tell(name, patch, basis_VR, clips, usual, time) -> None:
  """Prints the steps of the clips as they come through a layer."""
  mean_V = np.concatenate([tokens(c, patch, time) for c in clips]).mean(0)
  seen = []
  for clip in tqdm.tqdm(
    clips, desc=f'{patch} {basis_VR.shape[1]}', leave=False
  ):
    x_NV = tokens(clip, patch, time)
    x_NV = mean_V + (x_NV - mean_V) @ basis_VR @ basis_VR.T
    seen.append(video(x_NV, clip.shape, patch, time))
  report = seams.summarise(seams.within(seen), usual)
  ratios = ', '.join(f'{k} {report[f"ratio/{k}"]:.2f}' for k in seams.MEASURES)
  values = basis_VR.shape
  print(f'{name}: patch {patch}, {values[1]} of {values[0]}: {ratios}')


def tokens(clip_FHWC: np.ndarray, patch, time: int) -> np.ndarray:
  """Patches of the pixels' fold in time, without its first frame."""
  z_fhwc = einops.rearrange(
    clip_FHWC[1:] / np.float32(255), '(f t) h w c -> f h w (t c)', t=time
  )
  return np.asarray(patchify.patchify(z_fhwc[None], patch)[0])


def video(x_NV: np.ndarray, shape, patch, time: int) -> np.ndarray:
  """The frames of `tokens`, uint8."""
  frames, height, width, _ = shape
  grid = (frames - 1) // time, height // patch[1], width // patch[2]
  z_fhwc = np.asarray(patchify.unpatchify(x_NV[None], patch, grid)[0])
  frames_FHWC = einops.rearrange(z_fhwc, 'f h w (t c) -> (f t) h w c', t=time)
  return np.round(255 * frames_FHWC.clip(0, 1)).astype(np.uint8)


if __name__ == '__main__':
  main()
