"""Plain words for the probes: short, frequent, and told apart by how they begin."""

# No word is the beginning of another, and at most two share their first two letters.
NOUNS = (
    "apple", "bank", "bell", "bird", "boat", "book", "bread", "bridge", "cake", "card",
    "chair", "clock", "cloud", "coat", "cup", "desk", "door", "drum", "egg", "field", "fire",
    "flag", "floor", "game", "garden", "glass", "gold", "grass", "hat", "hill", "horse",
    "island", "jar", "key", "king", "knife", "lamp", "leaf", "letter", "line", "list", "map",
    "milk", "moon", "music", "name", "nest", "number", "oil", "paper", "path", "pen", "plate",
    "queen", "rain", "ring", "river", "road", "rope", "salt", "school", "ship", "snow", "spoon",
    "stone", "table", "test", "train", "tree", "value", "village", "wall", "water", "wheel",
    "wind", "yard",
)  # fmt: skip

PEOPLE = (
    "Anna", "Ben", "Carl", "Dora", "Emma", "Frank", "Greta", "Hugo", "Ivan", "Jack", "Kate",
    "Lena", "Mark", "Nora", "Otto", "Paul", "Rosa", "Sam", "Tom", "Vera", "Will", "Yara",
)  # fmt: skip
