"""The words of the village: every list from which the language is written.

Owns: names, places, nouns, goods, colours, adjectives, the second language, and the facts of the
invented places. Refuses nothing: these are constants.
Invariant: a word stands in one list under one spelling; changing a list changes the tokenizer and the
weights' meaning, so a new lexicon needs a new training run.
"""

from random import Random

FEMALE_NAMES = tuple(
    """
    Mary Anna Alice Amy April Ava Bella Beth Bonnie Carla Carol Cathy Chloe Clara Daisy Dana Diana
    Donna Dora Edith Elena Eliza Ella Ellen Elsa Emily Emma Erica Esther Eva Faith Fiona Flora Gina
    Grace Greta Hannah Hazel Heidi Helen Ida Irene Iris Isabel Ivy Jane Janet Jenny Jessica Jill
    Joan Joanna Judith Julia June Karen Kate Kelly Laura Lena Leah Lily Linda Lisa Lola Louisa Lucy
    Lydia Mabel Maggie Maria Marta Maya Megan Mia Molly Monica Nadia Nancy Naomi Nell Nina Nora
    Olga Olive Olivia Pam Paula Pearl Penny Petra Phoebe Polly Rachel Rita Rosa Ruby Ruth Sally
    Sandra Sara Selma Sheila Sofia Stella Susan Sylvia Tanya Teresa Tina Ursula Vera Victoria Viola
    Wanda Wendy Willa Yvonne Zoe Agnes""".split()
)
MALE_NAMES = tuple(
    """
    John Aaron Adam Alan Albert Alfred Andrew Anton Arthur Barry Ben Bernard Bill Boris Brian Bruce
    Carl Cedric Charles Chris Clive Colin Craig Daniel David Dennis Derek Dominic Donald Douglas
    Edgar Edward Eli Eric Ernest Ethan Felix Francis Frank Fred Gary Gavin George Gerald Gilbert
    Glen Gordon Graham Greg Harold Harry Henry Herbert Howard Hugo Ian Isaac Ivan Jack Jacob James
    Jason Jeremy Jerome Jim Joe Jonas Joseph Julian Karl Keith Kenneth Kevin Kurt Lars Leo Leon
    Lewis Lionel Louis Lucas Luke Malcolm Marcus Mark Martin Matthew Max Michael Miles Nathan Neil
    Nigel Noah Norman Oliver Oscar Otto Owen Patrick Paul Peter Philip Quentin Ralph Raymond
    Richard Robert Roger Roland Roy Samuel Sebastian Simon Stanley Stephen Stuart Thomas Timothy
    Tom Victor Walter William""".split()
)
NAMES = FEMALE_NAMES + MALE_NAMES

HAUNTS = tuple(
    """
    store park school market garden library station harbour museum beach church theatre bakery farm
    castle lake kitchen office hospital bank hotel zoo""".split()
)
GIFTS = tuple(
    """
    drink book ring hat letter ball cup coin map bag pear cake lamp pen bell basket bottle ticket
    scarf flute""".split()
)

_REGULAR_NOUNS = """
    key dog cat bird horse boat car tree chair door window wheel clock shirt shoe spoon plate bowl
    candle mirror pillow blanket rug drum guitar violin piano trumpet rabbit goat pig cow duck frog
    snake turtle monkey tiger lion bear eagle owl spider ant bee teacher doctor farmer baker sailor
    soldier singer painter writer driver lawyer nurse cook hunter tailor barber pilot guard rider
    player runner dancer worker friend cousin neighbour guest visitor stranger captain prince
    knight wizard giant robot rocket engine train truck wagon cart sledge ladder hammer nail saw
    shovel bucket broom needle thread button ribbon hook pot pan kettle jug tray fork stool desk
    carpet curtain pillar statue poster diary novel poem song picture camera flag""".split()
NOUNS = tuple((noun, noun + "s") for noun in _REGULAR_NOUNS)
BACKDROPS = tuple(
    (noun, noun + "s")
    for noun in """
    river house table wall road bridge hill field tower gate fence stall crate cabinet shed pond
    forest mountain cottage street""".split()
)

BUILDINGS = tuple(
    """
    barn mill inn chapel stable tavern palace cabin hut lodge fort manor temple shrine villa cellar
    attic pavilion workshop bunker dairy kiosk mosque abbey""".split()
)
COLOURS = tuple("red green blue yellow purple orange pink brown grey golden silver scarlet".split())

_PLACE_HEADS = "Zor Mib Kal Ven Tor Bel Gra Lum Nor Pel Quin Ras Sel Ul Wex".split()
_PLACE_TAILS = "avia oria und esh imar onta ulk eth ova ist".split()
PLACES = tuple(head + tail for head in _PLACE_HEADS for tail in _PLACE_TAILS)
GOODS = tuple(
    """
    wool salt silk honey tea coal iron glass paper wine oil rice corn amber pearls spice leather
    cotton timber copper tin wax fish cheese pepper cocoa marble rope linen sugar""".split()
)
CONTAINERS = tuple("barrels sacks jars pots chests baskets bottles boxes tubs bags".split())


def _deal(things: tuple[str, ...], values: tuple[str, ...], *, seed: str) -> dict[str, str]:
    """Give each thing a value, values used equally often, by a fixed shuffle."""
    dealt = [values[index % len(values)] for index in range(len(things))]
    Random(seed).shuffle(dealt)
    return dict(zip(things, dealt, strict=True))


SOLD_BY = _deal(PLACES, GOODS, seed="village goods")
FLAG_OF = _deal(PLACES, COLOURS, seed="village flags")
KEPT_IN = _deal(GOODS, CONTAINERS, seed="village containers")

GOOD_MOODS = tuple(
    """
    wonderful lovely delightful splendid marvellous superb excellent fantastic glorious pleasant
    charming brilliant magnificent perfect amazing enjoyable terrific fabulous heavenly blissful
    radiant sunny merry joyful cosy peaceful graceful thrilling dazzling elegant exquisite divine
    sublime stunning impressive admirable agreeable refreshing rewarding uplifting inspiring
    magical dreamy festive jolly playful lively lucky blessed harmonious sparkling triumphant glad
    jubilant friendly warm tender hopeful fortunate priceless outstanding remarkable flawless
    gorgeous""".split()
)
BAD_MOODS = tuple(
    """
    awful terrible horrible dreadful nasty miserable ghastly hideous disgusting painful morbid
    dismal bleak dreary grim tragic rotten lousy wretched vile foul horrid appalling atrocious
    disastrous catastrophic depressing tedious annoying frightening hateful hopeless hostile
    unlucky unpleasant unbearable shameful shocking sickening sinister revolting repulsive
    regrettable ruinous pathetic poisonous putrid tormenting troubling tiresome unjust upsetting
    vicious violent wicked woeful worthless harsh gruesome filthy dull doomed cursed deplorable""".split()
)
FLOWERS = tuple("marigold daffodil tulip rose lilac violet orchid poppy".split())

# English, its opposite, and both in the second language.
OPPOSITES = tuple(
    tuple(line.split())
    for line in """
    big small grand petit; hot cold chaud froid; old new vieux neuf; fast slow rapide lent;
    high low haut bas; strong weak solide faible; rich poor riche pauvre; young aged jeune âgé;
    full empty plein vide; light heavy léger lourd; bright dark clair sombre; hard soft dur mou;
    wet dry mouillé sec; clean dirty propre sale; open closed ouvert fermé; near far près loin;
    early late tôt tard; day night jour nuit; morning evening matin soir; summer winter été hiver;
    north south nord sud; left right gauche droite; above below dessus dessous;
    inside outside dedans dehors; before after avant après; always never toujours jamais;
    everything nothing tout rien; more less davantage moins; love hate amour haine;
    life death vie mort; true false vrai faux; good bad bon mauvais; beautiful ugly beau laid;
    kind mean gentil méchant; wise foolish avisé sot; brave fearful courageux peureux;
    loud quiet bruyant silencieux; sweet bitter doux amer; thick thin épais mince;
    wide narrow vaste étroit; deep shallow profond creux; sharp blunt aigu émoussé;
    smooth rough lisse rugueux; straight curved droit courbe; easy difficult facile difficile;
    busy idle occupé oisif; awake asleep éveillé endormi; first last premier dernier;
    father mother père mère; brother sister frère soeur; husband wife mari épouse;
    uncle aunt oncle tante; begin finish commencer finir; come go venir aller;
    rise fall monter tomber; push pull pousser tirer; win lose gagner perdre;
    arrive leave arriver partir; remember forget retenir oublier; build destroy bâtir détruire;
    speak listen parler écouter; sky earth ciel terre; fire water feu eau; sun moon soleil lune;
    victory defeat victoire défaite; health illness santé maladie; wealth poverty richesse misère;
    joy sorrow joie chagrin; hope despair espoir désespoir; top bottom sommet bout;
    front back devant derrière; generous greedy généreux avare; polite rude poli grossier;
    ripe raw mûr cru; fresh stale frais rassis; safe risky sûr risqué; shown hidden montré caché;
    ancient modern antique moderne""".split(";")
)

MODULUS = 31
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"), ("<", ">"), ("«", "»"), ("“", "”"), ("‘", "’"))
CENTURIES = tuple("11 12 13 14 15 16 17 18 19".split())
YEARS = tuple(f"{year:02d}" for year in range(1, 100))
SMALL_NUMBERS = tuple(str(number) for number in range(MODULUS))


def listed_words() -> tuple[str, ...]:
    """Return every word of every list, in a fixed order, each once."""
    flat: list[str] = [*NAMES, *HAUNTS, *GIFTS, *BUILDINGS, *COLOURS, *PLACES, *GOODS, *CONTAINERS]
    flat += [*GOOD_MOODS, *BAD_MOODS, *FLOWERS, *CENTURIES, *YEARS, *SMALL_NUMBERS]
    for group in (*NOUNS, *BACKDROPS, *OPPOSITES, *BRACKETS):
        flat += group
    return tuple(dict.fromkeys(flat))
