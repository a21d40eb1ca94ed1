"""A character and a scene that tests of the digits world share."""

from spacetime.data import world as world_lib

CHARACTER = world_lib.Character(
  digit=3,
  glyph=45,
  colour='red',
  size='small',
  start=(20.25, 31.1),
  motion='up-left',
  speed='slow',
)
SCENE = world_lib.Scene(
  characters=(CHARACTER,),
  background=world_lib.Background('vertical', 'navy', 'plum'),
  camera='pan left',
)
