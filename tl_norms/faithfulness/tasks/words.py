"""Words that templates are filled with. Those that are not single tokens in a tokenizer are left out there."""

PLURALS = {
    "key": "keys", "book": "books", "car": "cars", "picture": "pictures", "letter": "letters", "boat": "boats",
    "ship": "ships", "chair": "chairs", "report": "reports", "song": "songs", "tree": "trees", "house": "houses",
    "road": "roads", "dog": "dogs", "cat": "cats", "horse": "horses", "bird": "birds", "bottle": "bottles",
    "table": "tables", "door": "doors", "window": "windows", "phone": "phones", "painting": "paintings",
}  # fmt: skip
PEOPLE = {
    "boy": "boys", "girl": "girls", "man": "men", "woman": "women", "king": "kings", "queen": "queens",
    "teacher": "teachers", "student": "students", "doctor": "doctors", "artist": "artists", "author": "authors",
    "player": "players", "child": "children", "driver": "drivers", "friend": "friends",
}  # fmt: skip
GENDERED = {
    "boy": "himself", "girl": "herself", "man": "himself", "woman": "herself", "king": "himself", "queen": "herself",
    "father": "himself", "mother": "herself", "brother": "himself", "sister": "herself", "son": "himself",
    "daughter": "herself", "uncle": "himself", "aunt": "herself", "actor": "himself", "actress": "herself",
}  # fmt: skip
VERBS = {"is": "are", "was": "were", "has": "have"}
RELATIONS = ("near", "behind", "beside", "by", "under", "above")
ADVERBS = ("really", "certainly", "clearly", "probably", "still", "always")
PAST = ("saw", "hurt", "liked", "helped", "blamed", "praised", "described", "trusted", "hated", "taught")
MALE = ("John", "James", "Robert", "Michael", "David", "William", "Richard", "Thomas", "Mark", "Paul", "Peter", "Adam")
FEMALE = ("Mary", "Anna", "Sarah", "Laura", "Emma", "Alice", "Susan", "Helen", "Rachel", "Julia", "Linda", "Karen")
PLACES = ("store", "park", "school", "office", "station", "hospital", "garden", "market", "house", "beach")
THINGS = ("drink", "book", "ring", "letter", "gift", "ball", "card", "key", "ticket", "flower", "computer", "picture")
ADJECTIVES = ("red", "old", "new", "big", "small", "good", "bad", "strange", "beautiful", "heavy", "broken", "cheap")
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "orange", "pink", "gray")
LICENSED, UNLICENSED = ("ever",), ("also", "always", "often")
DETERMINERS = {"this": "these", "that": "those"}
