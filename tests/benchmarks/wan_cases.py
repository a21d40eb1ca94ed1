"""The cases of wan_cpu.py: the same work, by spacetime and by torch.

`ours(case)` and `theirs(case)` each return a function that does the work once
and returns an array to compare. Weights are random, of the published sizes,
and the same on either side; inputs too.
"""

import functools
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.helpers.seeded_weights import draw, weights  # noqa: E402

CASES = {
  'dit_forward': '2 layers of Wan 2.1 1.3B, 1560 tokens, 512 of text',
  'dit_backward': '1 layer of it, forward and backward',
  'i2v_forward': 'as dit_forward, of Wan 2.1 I2V: 36 channels, 257 of an image',
  'vace_forward': 'as dit_forward, of VACE: a control block beside 2 layers',
  'four_steps': 'as dit_forward, the four Euler steps of lightx2v',
  'vae_encode': 'VAE 2.1, 17 frames of 128x128, chunk by chunk',
  'vae_decode': 'the same clip back, chunk by chunk',
  'umt5': '1 layer of UMT5-XXL, 512 tokens',
  'vae_encode_whole': 'as vae_encode, ours in one piece',
  'vae_decode_whole': 'as vae_decode, ours in one piece',
  'vae_decode_long': '81 frames of 128x128, chunk by chunk',
  'matmul': 'four products of dit_forward: 1560x1536 by 1536x8960',
  'conv': 'four convolutions of vae_decode: 3x3x3, 96 channels, 6x64x64',
  'attention': 'four self-attentions of dit_forward: 1560 tokens, 12 heads',
  'attention_xla': "the same by ours of plain products, model.attention='xla'",
}
TOKENS = 1000
SIDE = 128
VARIANTS = {
  'i2v_forward': dict(cond_channels=20, image_width=1280),
  'vace_forward': dict(control_layers=(0,), control_channels=96),
}
# Of lightx2v's weights: between these an Euler step each.
SIGMAS = (1.0, 0.9375, 0.8333, 0.625, 0.0)
# One kernel alone, repeated: what a library's products and convolutions cost.
KERNELS = {
  'matmul': ((1560, 1536), (1536, 8960)),
  'conv': ((1, 6, 64, 64, 96), (3, 3, 3, 96, 96)),
  'attention': 3 * ((1, 1560, 12, 128),),
  'attention_xla': 3 * ((1, 1560, 12, 128),),
}
REPEATS = 4


def frames(case: str) -> int:
  """How many frames the clip of a case has."""
  return 81 if case.endswith('long') else 17


def config(case: str):
  """The sizes of a case's network."""
  from spacetime.models import text_encoder
  from spacetime.models.autoencoder import wan
  from spacetime.models.transformer import dit

  if case.startswith('vae'):
    return wan.PRESETS['wan2.1']
  if case == 'umt5':
    full = vars(text_encoder.PRESETS['umt5-xxl'])
    return text_encoder.TextConfig(
      **{**full, 'num_layers': 1, 'vocab_size': TOKENS}
    )
  return dit.DiTConfig(
    channels=16,
    patch=(1, 2, 2),
    width=1536,
    heads=12,
    layers=1 if case == 'dit_backward' else 2,
    mlp=8960,
    text_width=4096,
    **VARIANTS.get(case, {}),
  )


def tensors(case: str) -> dict[str, np.ndarray]:
  """The weights by their published names."""
  from spacetime.checkpoint.interop import networks

  return weights(networks.of(config(case)).published_shapes())


def inputs(case: str) -> tuple[np.ndarray, ...]:
  """What goes in, channels last."""
  if case in KERNELS:
    return tuple(
      draw(f'{number}{shape}', shape, 1.0 if len(shape) == 4 else 0.1)
      for number, shape in enumerate(KERNELS[case])
    )
  if case == 'umt5':
    return (np.arange(1, 513, dtype=np.int32)[None] % (TOKENS - 1) + 1,)
  if case.startswith('vae_encode'):
    return (draw('video', (1, frames(case), SIDE, SIDE, 3), 0.3).clip(-1, 1),)
  if case.startswith('vae_decode'):
    latents = 1 + (frames(case) - 1) // 4
    return (draw('latents', (1, latents, SIDE // 8, SIDE // 8, 16)),)
  return draw('latents', (1, 1, 60, 104, 16)), draw('text', (1, 512, 4096))


def conditions(case: str) -> dict[str, np.ndarray]:
  """What a variant sees beside latents and text."""
  if case == 'i2v_forward':
    return {
      'cond_Bfhwc': draw('cond', (1, 1, 60, 104, 20)),
      'image': draw('image', (1, 257, 1280)),
    }
  if case == 'vace_forward':
    return {'control_Bfhwc': draw('control', (1, 1, 60, 104, 96))}
  return {}


def ours(case: str):
  """spacetime's side."""
  import jax

  if case in KERNELS:
    return _ours_kernel(case)

  from spacetime.checkpoint.interop import umt5, wan_transformer, wan_vae
  from spacetime.models import text_encoder
  from spacetime.models.autoencoder import wan
  from spacetime.models.transformer import attention, dit

  arrays, sizes = inputs(case), config(case)
  if case == 'umt5':
    params = jax.device_put(umt5.params_from_torch_names(tensors(case)))
    encode = jax.jit(text_encoder.TextEncoder(sizes).encode)
    return lambda: encode(params, *arrays)
  if case.startswith('vae'):
    params = jax.device_put(wan_vae.params_from_torch_names(tensors(case)))
    return _ours_vae(case, wan.WanAutoencoder(sizes), params, *arrays)
  params = jax.device_put(
    wan_transformer.params_from_torch_names(tensors(case))
  )
  z_Bfhwc, text = arrays
  more = conditions(case)
  if 'image' in more:
    text = attention.ImageContext(text, more.pop('image'))

  def predict(params, z_Bfhwc=z_Bfhwc, t=0.5):
    t_BT = jax.numpy.full((1, 1), t)
    return dit.DiT(sizes).apply({'params': params}, z_Bfhwc, t_BT, text, **more)

  if case == 'four_steps':
    step = jax.jit(
      lambda params, z, t, end: z - (t - end) * predict(params, z, t)
    )
    return lambda: functools.reduce(
      lambda z, times: step(params, z, *times),
      zip(SIGMAS[:-1], SIGMAS[1:], strict=True),
      z_Bfhwc,
    )
  if case != 'dit_backward':
    run = jax.jit(predict)
    return lambda: run(params)

  def loss(params):
    return jax.numpy.mean(jax.numpy.square(predict(params)))

  run = jax.jit(jax.value_and_grad(loss))
  return lambda: _summary(*run(params))


def _ours_kernel(case: str):
  import jax

  from spacetime.models.transformer import attention_plan

  arrays = [jax.numpy.asarray(x) for x in inputs(case)]
  if case.startswith('attention'):
    kernel = 'xla' if case.endswith('xla') else 'auto'
    run = jax.jit(functools.partial(attention_plan.attend, kernel=kernel))
  elif case == 'matmul':
    run = jax.jit(jax.numpy.matmul)
  else:
    run = jax.jit(
      lambda x, w: jax.lax.conv_general_dilated(
        *(x, w, (1, 1, 1), 'SAME'),
        dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
      )
    )
  return lambda: [run(*arrays).block_until_ready() for _ in range(REPEATS)][-1]


def _summary(loss, grads):
  """The loss and the norm of all gradients; waits for them."""
  import jax

  flat = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(grads)]
  return np.array([loss, np.sqrt(sum(np.vdot(g, g) for g in flat))])


def _ours_vae(case: str, model, params, x):
  import jax

  from spacetime.models.autoencoder import streaming

  if case.endswith('whole'):
    run = jax.jit(getattr(model, case.split('_')[1]))
    return lambda: run(params, x)
  direction = case.split('_')[1]
  chunks = getattr(streaming, f'{direction}_chunks')
  first = jax.jit(getattr(model, f'{direction}_first'))
  step = jax.jit(getattr(model, f'{direction}_step'), donate_argnums=1)
  run = functools.partial(chunks, model, params, x, first=first, step=step)
  return lambda: np.concatenate([np.asarray(c) for c in run()], axis=1)


def theirs(case: str):
  """diffusers' and transformers' side, eager."""
  import torch

  arrays = [torch.from_numpy(x) for x in inputs(case)]
  if case == 'matmul':
    run, last = _repeated(torch.matmul, *arrays), lambda x: x
  elif case.startswith('attention'):
    arrays = [x.movedim(1, 2).contiguous() for x in arrays]
    attend = torch.nn.functional.scaled_dot_product_attention
    run, last = _repeated(attend, *arrays), lambda x: x.movedim(1, 2)
  elif case == 'conv':
    x, w = arrays
    x, w = x.movedim(-1, 1).contiguous(), w.permute(4, 3, 0, 1, 2).contiguous()
    convolve = functools.partial(torch.nn.functional.conv3d, padding=1)
    run, last = _repeated(convolve, x, w), lambda x: x.movedim(1, -1)
  elif case == 'umt5':
    run, last = _their_text(arrays), lambda x: x
  elif case.startswith('vae'):
    run, last = _their_vae(case, arrays), lambda x: x.movedim(1, -1)
  else:
    run, last = _their_transformer(case, arrays), lambda x: x.movedim(1, -1)
  if case == 'dit_backward':
    return run

  def once():
    with torch.no_grad():
      return last(run()).numpy()

  return once


def _repeated(function, *arrays):
  return lambda: [function(*arrays) for _ in range(REPEATS)][-1]


def _load(model, case: str):
  import torch

  state = {k: torch.from_numpy(v) for k, v in tensors(case).items()}
  missing, unexpected = model.load_state_dict(state, strict=False)
  tied = {'encoder.embed_tokens.weight'}
  if set(missing) - tied or unexpected:
    raise SystemExit(f'{case}: missing {missing}, unexpected {unexpected}')
  return model.eval()


def _their_text(arrays):
  import transformers

  sizes = config('umt5')
  model = transformers.UMT5EncoderModel(
    transformers.UMT5Config(
      vocab_size=sizes.vocab_size,
      d_model=sizes.d_model,
      d_kv=sizes.d_kv,
      num_heads=sizes.num_heads,
      d_ff=sizes.d_ff,
      num_layers=1,
      feed_forward_proj='gated-gelu',
    )
  )
  model, tokens = _load(model, 'umt5'), arrays[0].long()
  mask = tokens.ne(0).long()
  return lambda: model(tokens, mask).last_hidden_state


def _their_vae(case: str, arrays):
  import diffusers
  import torch

  model = _load(diffusers.AutoencoderKLWan(), case)
  x = arrays[0].movedim(-1, 1).contiguous()
  mean, std = (
    torch.tensor(getattr(config(case), f'latents_{name}')).view(1, -1, 1, 1, 1)
    for name in ('mean', 'std')
  )
  if case.startswith('vae_encode'):
    return lambda: (model.encode(x).latent_dist.mode() - mean) / std
  return lambda: model.decode(x * std + mean).sample


def _their_transformer(case: str, arrays):
  import diffusers
  import torch

  from spacetime.checkpoint.interop import wan_transformer

  values = wan_transformer.write_config(config(case))
  model = getattr(diffusers, values.pop('_class_name')).from_config(values)
  model = _load(model, case)
  (z, text), more = arrays, conditions(case)
  if 'cond_Bfhwc' in more:
    z = torch.cat([z, torch.from_numpy(more['cond_Bfhwc'])], -1)
  call = {}
  if 'image' in more:
    call['encoder_hidden_states_image'] = torch.from_numpy(more['image'])
  if 'control_Bfhwc' in more:
    control = torch.from_numpy(more['control_Bfhwc'])
    call['control_hidden_states'] = control.movedim(-1, 1).contiguous()
  z = z.movedim(-1, 1).contiguous()

  def run(z=z, t=0.5):
    step = torch.tensor([1000 * t])
    return model(z, step, text, return_dict=False, **call)

  def steps():
    x = z
    for t, end in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
      x = x - (t - end) * run(x, t)[0]
    return x

  if case == 'four_steps':
    return steps
  if case != 'dit_backward':
    return lambda: run()[0]

  def both():
    model.zero_grad(set_to_none=True)
    loss = run()[0].square().mean()
    loss.backward()
    grads = [p.grad.ravel() for p in model.parameters()]
    norm = sum(torch.vdot(g, g) for g in grads).sqrt()
    return np.array([loss.item(), norm.item()])

  return both
