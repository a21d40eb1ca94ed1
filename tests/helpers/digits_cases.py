"""A character and a scene that tests of the digits world share."""

from spacetime.data.digits import world

CHARACTER = world.Character(
  digit=3,
  glyph=45,
  colour='red',
  size='small',
  start=(20.25, 31.1),
  motion='up-left',
  speed='slow',
)
SCENE = world.Scene(
  characters=(CHARACTER,),
  background=world.Background('vertical', 'navy', 'plum'),
  camera='pan left',
)
