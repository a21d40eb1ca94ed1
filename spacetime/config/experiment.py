"""The typed experiment: every section of a config, checked."""

import dataclasses
from collections.abc import Mapping

from spacetime import SettingError
from spacetime.config import sections
from spacetime.data.settings import DataConfig
from spacetime.diffusion.flow import FlowConfig
from spacetime.diffusion.settings import SamplingSettings
from spacetime.models.image_encoder import ImageConfig
from spacetime.models.transformer.dit import DiTConfig
from spacetime.models.transformer.lora import LoraConfig
from spacetime.sharding import MeshConfig

STAGES = ('diffusion', 'autoencoder')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A config, parsed once. Sections that it leaves out are None.

  Attributes:
    stage: 'diffusion' trains the transformer, 'autoencoder' the autoencoder.
    seed: seed of data, parameters and noise.
    values: the config as nested plain values, as config.json stores it.
    data: clips and batches.
    autoencoder: the autoencoder of the latents.
    text: the text encoder.
    image: the image encoder, of a transformer that sees images.
    model: sizes of the transformer; `channels` is 0 until the autoencoder is
      known where its weights bring its sizes (see networks.networks).
    flow: prediction and noise levels of training.
    conditioning: conditioning frames of training.
    flow_map: training of a flow map, where `model.flow_map` is set.
    lora: low-rank adapters; rank 0 trains every parameter.
    optimizer: the optimizer and its schedule.
    mesh: devices along each axis.
    train: length of the run and intervals.
    sampling: defaults of the sampler.
    reconstruction: loss of the autoencoder's stage.
    published: indices of the published folder that a model came from.
    source: path and fingerprints of the weights that a run started from.
    cache: fingerprints of the latent cache that a run trains on.
  """

  stage: str
  seed: int
  values: Mapping = dataclasses.field(repr=False, compare=False)
  data: DataConfig | None = None
  autoencoder: sections.AutoencoderSection | None = None
  text: sections.TextSection | None = None
  image: ImageConfig | None = None
  model: DiTConfig | None = None
  flow: FlowConfig | None = None
  conditioning: sections.FrameConditioningConfig | None = None
  flow_map: sections.FlowMapConfig = sections.FlowMapConfig()
  lora: LoraConfig = LoraConfig()
  optimizer: sections.OptimizerConfig | None = None
  mesh: MeshConfig | None = None
  train: sections.TrainConfig | None = None
  sampling: SamplingSettings | None = None
  reconstruction: sections.ReconstructionConfig | None = None
  published: Mapping = dataclasses.field(default_factory=dict, repr=False)
  source: Mapping = dataclasses.field(default_factory=dict, repr=False)
  cache: Mapping = dataclasses.field(default_factory=dict, repr=False)

  def __post_init__(self):
    if self.stage not in STAGES:
      raise SettingError('stage', self.stage, f'one of {STAGES}')

  @property
  def has_teacher(self) -> bool:
    """Whether a flow map learns from the model that its run starts from."""
    return (
      self.stage == 'diffusion'
      and self.model is not None
      and self.model.flow_map > 0
      and self.flow_map.teacher == 'model'
    )

  def require(self, *names: str) -> None:
    """Checks that the config has these sections.

    Raises:
      SettingError: a section is missing.
    """
    for name in names:
      if getattr(self, name) is None:
        raise SettingError(
          name, None, f'a section of this name in stage {self.stage!r}'
        )
