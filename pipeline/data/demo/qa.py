"""Short passages with questions that cannot be answered without reading the question.

Every passage is made here from hand-written words and sentence frames. It states the same facts about two or three
entities of one kind: two people with their jobs and home towns, three trains with their platforms. Other sentences
name more towns, years and people as distractors. A question asks for one fact about one entity, or for the entity that
a fact is true of. It uses other words than the passage where possible.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.data.examples import Answer, QAExample

TRAIN_SIZE = 1200
DEV_SIZE = 200
_QUESTIONS_PER_PASSAGE = 3
_MIN_WORDS, _MAX_WORDS = 25, 90
_MIN_SENTENCES, _MAX_SENTENCES = 2, 5

_WOMEN = tuple("Maria Anna Emma Sarah Julia Laura Clara Helen Nina Alice Rosa Diana Eva Irene Martha Sophie".split())
_MEN = tuple("Thomas Peter David Marco Paul Simon Victor Oscar Daniel Martin Henry Leo Felix Hugo Ivan Samuel".split())
_SURNAMES = tuple(
    "Lopez Reed Novak Hale Fischer Moreau Walsh Grant Rossi Berg Tanaka Silva Carter Young Weber Patel Quinn Costa "
    "Meyer Dunn Foster Lind Romero Blake".split()
)
_TOWNS = tuple(
    "Leeds Turin Lyon Porto Bergen Krakow Dublin Seville Ghent Basel Vienna Oslo Bristol Naples Hamburg Prague Cork "
    "Lisbon Geneva York Madrid Boston Toronto Sydney".split()
)
_YEARS = tuple(str(year) for year in range(1921, 2020))
_RECENT_YEARS = tuple(str(year) for year in range(1971, 2020))
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = tuple("January February March April May June July August September October November December".split())
_TIMES = tuple(f"{hour}:{minute}" for hour in range(7, 22) for minute in ("05", "10", "20", "30", "40", "45", "50"))


@dataclass(frozen=True)
class _Entity:
    """A person or thing that a passage is about: its full name, shorter names and its pronoun."""

    name: str
    article: str
    pronoun: str
    short_names: tuple[str, ...] = ()

    @property
    def phrase(self) -> str:
        return f"{self.article}{self.name}"


@dataclass(frozen=True)
class _Relation:
    """A kind of fact. {v} stands for its value, {a} for the article of the value, {e} for the entity.

    `predicates` follow the entity's name in the passage. `questions` ask for the value. `reverse_questions` state the
    value and ask for the entity.
    """

    values: tuple[str, ...]
    predicates: tuple[str, ...]
    questions: tuple[str, ...]
    reverse_questions: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Scenario:
    """A kind of passage.

    Its entities are people if `names` is empty. `openers` and `closers` are distracting sentences; {person}, {town},
    {year}, {day}, {month} and {time} stand for random values.
    """

    names: tuple[str, ...]
    relations: tuple[_Relation, ...]
    openers: tuple[str, ...]
    closers: tuple[str, ...]
    article: str = "the "


def _numbers(start: int, stop: int, step: int, unit: str = "") -> tuple[str, ...]:
    return tuple(f"{number}{unit and ' '}{unit}" for number in range(start, stop, step))


_PEOPLE_NAMES = tuple(f"{first} {last}" for first in _WOMEN + _MEN for last in _SURNAMES)

_SCENARIOS = (
    _Scenario(  # colleagues
        names=(),
        relations=(
            _Relation(
                tuple(
                    "baker nurse teacher plumber lawyer pilot carpenter engineer librarian chemist tailor "
                    "photographer translator gardener architect dentist".split()
                ),
                ("works as {a} {v}", "earns a living as {a} {v}", "trained as {a} {v}"),
                (
                    "What does {e} do for a living?",
                    "What is {e}'s profession?",
                    "Which job does {e} have?",
                    "What is the occupation of {e}?",
                ),
                ("Who is the {v}?", "Who has the job of {v}?"),
            ),
            _Relation(
                _TOWNS,
                ("grew up in {v}", "was born in {v}", "spent a happy childhood in {v}"),
                ("Where does {e} come from?", "In which town was {e} raised?", "What is {e}'s home town?"),
                ("Who comes from {v}?", "Whose home town is {v}?"),
            ),
            _Relation(
                _RECENT_YEARS,
                ("joined the choir in {v}", "became a member in {v}", "has been singing there since {v}"),
                (
                    "When did {e} join?",
                    "In what year did {e} start at the choir?",
                    "Since when has {e} belonged to it?",
                ),
                ("Who started at the choir in {v}?", "Whose membership dates from {v}?"),
            ),
            _Relation(
                ("piano", "violin", "cello", "flute", "guitar", "trumpet", "harp", "clarinet", "organ", "drums"),
                ("plays the {v}", "practises the {v} every night", "gives lessons on the {v}"),
                ("What instrument does {e} play?", "On which instrument can {e} be heard?"),
                ("Who can be heard on the {v}?", "Whose instrument is the {v}?"),
            ),
        ),
        openers=(
            "The choir meets every {day} in the old town hall.",
            "The choir was founded by {person} and has forty members.",
            "Some voices stand out in this choir from {town}.",
        ),
        closers=(
            "The next concert is planned for {month}.",
            "In {year} the choir won a small prize.",
            "Their conductor, {person}, is looking for more voices.",
        ),
    ),
    _Scenario(  # an auction
        names=(
            "oak table",
            "blue vase",
            "silver watch",
            "brass lamp",
            "leather chair",
            "wall clock",
            "old globe",
            "stone bust",
            "glass bowl",
            "iron bed",
            "wooden chest",
            "gold ring",
        ),
        relations=(
            _Relation(
                _numbers(20, 980, 15, "euros"),
                ("sold for {v}", "fetched {v}", "went for {v}"),
                ("How much did the {e} cost?", "What was the price of the {e}?", "What did somebody pay for the {e}?"),
                ("What did somebody pay {v} for?", "Which piece cost {v}?"),
            ),
            _Relation(
                _TOWNS,
                ("was made in {v}", "comes from a workshop in {v}", "was built by a family firm in {v}"),
                ("Where was the {e} produced?", "From which town is the {e}?", "What is the origin of the {e}?"),
                ("Which piece has its origin in {v}?", "What was produced in {v}?"),
            ),
            _Relation(
                _PEOPLE_NAMES,
                ("now belongs to {v}", "was bought by {v}", "is now in the hands of {v}"),
                ("Who is the new owner of the {e}?", "Who purchased the {e}?", "To whom did the {e} go?"),
                ("What did {v} purchase?", "Which piece does {v} own now?"),
            ),
            _Relation(
                _YEARS,
                ("dates from {v}", "is a piece of {v}", "carries the date {v}"),
                ("How old is the {e}: from what year is it?", "In which year was the {e} created?"),
                ("Which piece was created in {v}?",),
            ),
        ),
        openers=(
            "The auction on {day} drew a large crowd.",
            "{person} opened the sale at {time}.",
            "The house has held auctions since {year}.",
        ),
        closers=(
            "A painting from {town} found no buyer.",
            "The next sale is in {month}.",
            "A dealer from {town} left before the end.",
        ),
    ),
    _Scenario(  # trains
        names=tuple(f"train to {town}" for town in _TOWNS),
        relations=(
            _Relation(
                _TIMES,
                ("leaves at {v}", "departs at {v}", "sets off at {v}"),
                ("When does the {e} go?", "What is the departure time of the {e}?", "At what time does the {e} start?"),
                ("Which train starts at {v}?", "Which service has a departure time of {v}?"),
            ),
            _Relation(
                tuple(f"platform {number}" for number in range(1, 19)),
                ("stands at {v}", "uses {v}", "can be found at {v}"),
                ("Where do passengers board the {e}?", "Which platform is the {e} on?", "Where is the {e} waiting?"),
                ("Which train is on {v}?", "What is waiting at {v}?"),
            ),
            _Relation(
                _numbers(35, 240, 5, "minutes"),
                ("takes {v}", "needs {v}", "reaches the last stop in {v}"),
                ("How long is the ride on the {e}?", "What is the travel time of the {e}?"),
                ("Which train has a travel time of {v}?",),
            ),
            _Relation(
                _PEOPLE_NAMES,
                ("is driven by {v}", "is in the charge of {v}", "has {v} at the controls"),
                ("Who is the driver of the {e}?", "Who drives the {e}?", "Who runs the {e}?"),
                ("Which train does {v} drive?",),
            ),
        ),
        openers=(
            "The station opened in {year} and is busy all day.",
            "On {day} there are fewer trains than usual.",
            "The ticket office closes at {time}.",
        ),
        closers=(
            "{person} sells coffee next to the entrance.",
            "A new hall will open in {month}.",
            "Bicycles are not allowed before {time}.",
        ),
    ),
    _Scenario(  # a conference
        names=(),
        relations=(
            _Relation(
                (
                    "coral reefs",
                    "wind power",
                    "old maps",
                    "sleep",
                    "honey bees",
                    "city traffic",
                    "deep mines",
                    "river floods",
                    "solar storms",
                    "folk music",
                    "school meals",
                    "ancient bread",
                    "bird migration",
                    "volcanoes",
                ),
                ("talks about {v}", "gives a lecture on {v}", "presents new work on {v}"),
                ("What is {e}'s subject?", "What is the topic of {e}?", "What will {e} speak about?"),
                ("Who will speak about {v}?", "Whose subject is {v}?"),
            ),
            _Relation(
                ("Red Hall", "North Hall", "Garden Room", "Library", "Blue Room", "Theatre", "Chapel", "Tower Room"),
                ("appears in the {v}", "can be heard in the {v}", "has been given the {v}"),
                ("Where does {e} speak?", "Which room is {e} in?", "In which place will {e} be?"),
                ("Who speaks in the {v}?", "Who is in the {v}?"),
            ),
            _Relation(
                _TIMES,
                ("starts at {v}", "is on at {v}", "takes the stage at {v}"),
                ("When does {e} speak?", "At what time does {e} begin?", "What is the time of {e}'s session?"),
                ("Who begins at {v}?", "Whose session is at {v}?"),
            ),
            _Relation(
                _TOWNS,
                ("travels from {v}", "is based in {v}", "teaches at a college in {v}"),
                ("Where does {e} work?", "Which town does {e} come from?"),
                ("Who works in {v}?", "Who comes from {v}?"),
            ),
        ),
        openers=(
            "The conference takes place in {town} this year.",
            "{person} has been running this meeting since {year}.",
            "The coffee bar stays open until {time} on {day}.",
        ),
        closers=(
            "The last bus to the hotel leaves at {time}.",
            "{person} will close the day.",
            "The next meeting will be held in {month}.",
        ),
    ),
    _Scenario(  # bridges
        names=(
            "Stone Bridge",
            "Mill Bridge",
            "Queen's Bridge",
            "Harbour Bridge",
            "Iron Bridge",
            "West Bridge",
            "Castle Bridge",
            "Market Bridge",
            "Swan Bridge",
            "Park Bridge",
        ),
        relations=(
            _Relation(
                _YEARS,
                ("opened in {v}", "was finished in {v}", "has carried traffic since {v}"),
                ("When was the {e} built?", "In what year was the {e} completed?", "From which year is the {e}?"),
                ("Which bridge was completed in {v}?", "What was built in {v}?"),
            ),
            _Relation(
                _PEOPLE_NAMES,
                ("was designed by {v}", "is the work of {v}", "was drawn by {v}"),
                ("Who planned the {e}?", "Who was the architect of the {e}?", "Whose design is the {e}?"),
                ("Which bridge did {v} plan?", "What was {v} the architect of?"),
            ),
            _Relation(
                _numbers(45, 990, 7, "metres"),
                ("is {v} long", "measures {v}", "spans {v}"),
                ("What is the length of the {e}?", "How long is the {e}?", "How far does the {e} reach?"),
                ("Which bridge has a length of {v}?",),
            ),
        ),
        openers=(
            "Several bridges cross the river between {town} and the sea.",
            "The first ferry was started by {person} in {year}.",
            "A small museum by the river tells their story.",
        ),
        closers=(
            "A flood in {year} damaged the banks.",
            "Boats stop here every {day}.",
            "The footpath is closed in {month}.",
        ),
    ),
    _Scenario(  # animals in a shelter
        names=(
            "Biscuit",
            "Shadow",
            "Pepper",
            "Rocky",
            "Ginger",
            "Lucky",
            "Bella",
            "Max",
            "Coco",
            "Ruby",
            "Smoky",
            "Daisy",
        ),
        article="",
        relations=(
            _Relation(
                ("dog", "cat", "rabbit", "parrot", "goat", "donkey", "pony", "hamster", "goose", "tortoise"),
                ("is a shy {v}", "is a gentle {v}", "is a lively {v}"),
                ("What kind of animal is {e}?", "What is {e}?", "To which species does {e} belong?"),
                ("What is the {v} called?", "What is the name of the {v}?"),
            ),
            _Relation(
                _PEOPLE_NAMES,
                ("was adopted by {v}", "now lives with {v}", "found a home with {v}"),
                ("Who took {e} in?", "Who is {e}'s owner?", "Who has {e} now?"),
                ("Which animal did {v} take in?", "Who belongs to {v}?"),
            ),
            _Relation(
                ("carrots", "apples", "rice", "cheese", "fish", "oats", "pears", "chicken", "bread", "melon"),
                ("likes {v} best", "would do anything for {v}", "is fed on {v}"),
                ("What does {e} eat?", "What is {e}'s favourite food?", "What can one tempt {e} with?"),
                ("Who eats {v}?", "Whose favourite food is {v}?"),
            ),
            _Relation(
                _RECENT_YEARS,
                ("arrived in {v}", "was brought in during {v}", "came to the shelter in {v}"),
                ("When did {e} get there?", "In which year was {e} taken to the shelter?"),
                ("Which animal got there in {v}?",),
            ),
        ),
        openers=(
            "The shelter is run by {person}, who never takes a day off.",
            "The shelter near {town} is open on {day}.",
            "The oldest part of the shelter was rebuilt in {year}.",
        ),
        closers=(
            "Visitors are welcome until {time}.",
            "A vet from {town} comes once a week.",
            "The roof will be mended in {month}.",
        ),
    ),
    _Scenario(  # football clubs
        names=(
            "Rovers",
            "United",
            "Wanderers",
            "Athletic",
            "Rangers",
            "Albion",
            "Dynamo",
            "Olympic",
            "Phoenix",
            "Victoria",
        ),
        article="",
        relations=(
            _Relation(
                _PEOPLE_NAMES,
                ("is coached by {v}", "plays under {v}", "has been in the hands of {v} for a while"),
                ("Who trains {e}?", "Who is the manager of {e}?", "Who is in charge at {e}?"),
                ("Which club does {v} train?", "What club is {v} the manager of?"),
            ),
            _Relation(
                _TOWNS,
                ("plays its home games in {v}", "has its ground in {v}", "represents {v}"),
                ("Where is {e} based?", "What town does {e} come from?", "In which town is {e} at home?"),
                ("Which club is based in {v}?", "Which side comes from {v}?"),
            ),
            _Relation(
                _numbers(12, 97, 1, "points"),
                ("has {v}", "finished on {v}", "collected {v}"),
                ("How many points did {e} win?", "What was the final total of {e}?", "How did {e} do in the table?"),
                ("Which club had a total of {v}?",),
            ),
            _Relation(
                ("red", "blue", "green", "yellow", "white", "black", "orange", "purple", "brown", "pink"),
                ("wears {v} shirts", "plays in {v}", "runs out in {v} socks and shirts"),
                ("What colour does {e} wear?", "In which colour does {e} play?"),
                ("Which side wears {v}?", "Whose colour is {v}?"),
            ),
        ),
        openers=(
            "The league was set up by {person} in {year}.",
            "It was a close season, decided on a wet {day}.",
            "The final was held in {town} in front of a small crowd.",
        ),
        closers=(
            "The referee, {person}, retired afterwards.",
            "The new season begins in {month}.",
            "Tickets go on sale at {time}.",
        ),
    ),
    _Scenario(  # a restaurant kitchen
        names=(
            "fish pie",
            "apple cake",
            "bean stew",
            "lamb roast",
            "onion tart",
            "rice pudding",
            "pumpkin soup",
            "beef curry",
            "cheese bread",
            "plum crumble",
        ),
        relations=(
            _Relation(
                _numbers(15, 125, 5, "minutes"),
                ("takes {v}", "stays in the oven for {v}", "is ready after {v}"),
                ("How long does the {e} cook?", "What is the cooking time of the {e}?"),
                ("Which dish has a cooking time of {v}?", "What cooks for {v}?"),
            ),
            _Relation(
                _PEOPLE_NAMES,
                ("is made by {v}", "is the pride of {v}", "was invented by {v}"),
                ("Who prepares the {e}?", "Who is the cook behind the {e}?", "Whose dish is the {e}?"),
                ("Which dish does {v} prepare?", "What is {v}'s dish?"),
            ),
            _Relation(
                _numbers(4, 39, 1, "pounds"),
                ("costs {v}", "is on the menu for {v}", "sells at {v}"),
                ("What is the price of the {e}?", "How much is the {e}?", "How much does a guest pay for the {e}?"),
                ("Which dish has a price of {v}?", "What can a guest get for {v}?"),
            ),
            _Relation(
                ("nutmeg", "mint", "ginger", "garlic", "thyme", "saffron", "basil", "pepper", "cinnamon", "mustard"),
                ("owes its taste to {v}", "contains a lot of {v}", "is seasoned with {v}"),
                ("What spice goes into the {e}?", "What gives the {e} its flavour?"),
                ("Which dish gets its flavour from {v}?", "What is {v} used for?"),
            ),
        ),
        openers=(
            "The restaurant in {town} has a short menu.",
            "The kitchen opens at {time} and is never quiet.",
            "{person} took over the restaurant in {year}.",
        ),
        closers=(
            "On {day} there is no hot food.",
            "The bread comes from a bakery in {town}.",
            "A new menu is due in {month}.",
        ),
    ),
    _Scenario(  # branches of a company
        names=tuple(f"{town} office" for town in _TOWNS),
        relations=(
            _Relation(
                _PEOPLE_NAMES,
                ("is led by {v}", "reports to {v}", "has {v} as its head"),
                ("Who manages the {e}?", "Who is the director of the {e}?", "Who is in charge of the {e}?"),
                ("What does {v} manage?", "Which office is {v} the director of?"),
            ),
            _Relation(
                _numbers(14, 480, 3, "people"),
                ("employs {v}", "has grown to {v}", "gives work to {v}"),
                ("How large is the staff of the {e}?", "How many work at the {e}?", "What is the size of the {e}?"),
                ("Which office has a staff of {v}?",),
            ),
            _Relation(
                (
                    "bicycles",
                    "printers",
                    "lamps",
                    "tents",
                    "radios",
                    "shoes",
                    "kettles",
                    "mirrors",
                    "toys",
                    "carpets",
                    "engines",
                    "pumps",
                ),
                ("deals with {v}", "designs {v}", "is responsible for {v}"),
                ("What product does the {e} handle?", "On what does the {e} work?", "What is the {e} known for?"),
                ("Which office handles {v}?", "Where does the work on {v} happen?"),
            ),
            _Relation(
                _YEARS,
                ("opened in {v}", "was set up in {v}", "has existed since {v}"),
                ("When was the {e} founded?", "What year did the {e} begin its work?"),
                ("Which office was founded in {v}?",),
            ),
        ),
        openers=(
            "The company belongs to {person} and does well.",
            "The company was close to ruin in {year}.",
            "The board meets every {day} to compare results.",
        ),
        closers=(
            "Another branch will follow in {month}.",
            "Its founder, {person}, has retired.",
            "The figures were published at {time}.",
        ),
    ),
    _Scenario(  # books
        names=(
            "Silent Harbour",
            "Winter Garden",
            "Paper Moon",
            "Broken Mirror",
            "Last Island",
            "Golden Key",
            "Night Ferry",
            "Empty House",
            "Long Road",
            "Glass Mountain",
        ),
        article="The ",
        relations=(
            _Relation(
                _PEOPLE_NAMES,
                ("was written by {v}", "is by {v}", "made {v} famous"),
                ("Who is the author of The {e}?", "Who wrote The {e}?", "Whose book is The {e}?"),
                ("What did {v} write?", "Which book is {v} the author of?"),
            ),
            _Relation(
                _YEARS,
                ("came out in {v}", "was published in {v}", "first appeared in {v}"),
                (
                    "When was The {e} printed?",
                    "In what year could one first buy The {e}?",
                    "What year is The {e} from?",
                ),
                ("Which book is from {v}?",),
            ),
            _Relation(
                _numbers(96, 790, 11, "pages"),
                ("has {v}", "runs to {v}", "tells its story in {v}"),
                ("What is the length of The {e}?", "How long is The {e}?", "How many pages are there in The {e}?"),
                ("Which book has a length of {v}?",),
            ),
            _Relation(
                _TOWNS,
                ("is set in {v}", "takes the reader to {v}", "plays in the streets of {v}"),
                ("Where does the story of The {e} happen?", "Which town is The {e} about?"),
                ("Which book is about {v}?", "What story happens in {v}?"),
            ),
        ),
        openers=(
            "The reading group chose its books on {day}.",
            "{person} has led the reading group since {year}.",
            "The library closes at {time}, so the group had to hurry.",
        ),
        closers=(
            "A film is expected in {month}.",
            "{person} had read none of them.",
            "The group will travel to {town} in {month}.",
        ),
    ),
    _Scenario(  # parcels
        names=(
            "red parcel",
            "blue crate",
            "small box",
            "heavy trunk",
            "grey sack",
            "flat package",
            "green suitcase",
            "white envelope",
            "black tube",
            "yellow bag",
        ),
        relations=(
            _Relation(
                _TOWNS,
                ("was sent from {v}", "started its journey in {v}", "has come all the way from {v}"),
                ("Where did the {e} come from?", "Where was the {e} posted?", "From which town is the {e}?"),
                ("What was posted in {v}?", "Which item is from {v}?"),
            ),
            _Relation(
                _numbers(2, 95, 1, "kilos"),
                ("weighs {v}", "brings {v} to the scales", "is listed at {v}"),
                ("How heavy is the {e}?", "What is the weight of the {e}?"),
                ("Which item has a weight of {v}?",),
            ),
            _Relation(
                _DAYS,
                ("arrived on {v}", "was handed over on {v}", "reached the depot on {v}"),
                ("When did the {e} get there?", "What day was the {e} delivered?", "On which day did the {e} come in?"),
                ("What was delivered on {v}?", "Which item got there on {v}?"),
            ),
            _Relation(
                _PEOPLE_NAMES,
                ("is meant for {v}", "is addressed to {v}", "carries a label for {v}"),
                ("Who should get the {e}?", "Who will receive the {e}?", "For whom is the {e}?"),
                ("What will {v} receive?", "Which item should {v} get?"),
            ),
        ),
        openers=(
            "The depot opens at {time} and handles all kinds of goods.",
            "The depot has been in the same street since {year}.",
            "{person} keeps the list of everything that comes in.",
        ),
        closers=(
            "The lift has been out of order since {month}.",
            "A clerk named {person} signed for everything.",
            "The van leaves at {time}.",
        ),
    ),
    _Scenario(  # expeditions
        names=tuple(
            f"{adjective} expedition"
            for adjective in (
                "first",
                "Swiss",
                "northern",
                "French",
                "royal",
                "Danish",
                "eastern",
                "British",
                "private",
                "Polish",
            )
        ),
        relations=(
            _Relation(
                _PEOPLE_NAMES,
                ("was led by {v}", "was in the hands of {v}", "followed {v}"),
                ("Who commanded the {e}?", "Who was the head of the {e}?", "Under whom did the {e} travel?"),
                ("What did {v} command?", "Which group was under {v}?"),
            ),
            _Relation(
                _YEARS,
                ("set out in {v}", "left in {v}", "began its march in {v}"),
                ("When did the {e} start?", "What was the year of the {e}?", "In which year did the {e} depart?"),
                ("Which group started in {v}?",),
            ),
            _Relation(
                _numbers(6, 95, 1, "men"),
                ("counted {v}", "consisted of {v}", "took {v} along"),
                ("How big was the {e}?", "How many took part in the {e}?", "What was the size of the {e}?"),
                ("Which group had a size of {v}?",),
            ),
            _Relation(
                ("tea", "salt", "furs", "coal", "pearls", "spices", "timber", "silver", "copper", "wool"),
                ("came back with {v}", "returned with a load of {v}", "brought home {v}"),
                ("What goods did the {e} carry home?", "What did the {e} find?"),
                ("Which group found {v}?", "Who carried home {v}?"),
            ),
        ),
        openers=(
            "The old trade route began in {town} and crossed the mountains.",
            "The society in {town} paid for every journey.",
            "A film about these journeys was made by {person} in {year}.",
        ),
        closers=(
            "Snow closed the pass in {month}.",
            "A statue of {person} stands at the harbour.",
            "The papers are now kept in {town}.",
        ),
    ),
)


@dataclass(frozen=True)
class _Fact:
    """Where the passage names the value of a fact, and where it last named the entity before that."""

    value: Answer
    entity: Answer


@dataclass
class _Passage:
    """A passage that is being written. `facts` has a key (entity, relation) for each fact; `used` has all named words."""

    scenario: _Scenario
    entities: list[_Entity]
    relations: list[_Relation]
    text: str = ""
    sentences: int = 0
    facts: dict[tuple[int, int], _Fact] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def add(self, words: str) -> Answer:
        """Appends words, with a capital at the start of a sentence, and returns where they stand."""
        if not self.text or self.text.endswith(". "):
            words = words[0].upper() + words[1:]
        start = len(self.text)
        self.text += words
        return Answer(words, start)

    def end_sentence(self) -> None:
        self.text += ". "
        self.sentences += 1


class _Writer:
    """Writes passages and questions about them with one random generator."""

    def __init__(self, rng: random.Random):
        self.rng = rng

    def passage(self) -> _Passage:
        """Returns a passage within the limits of length."""
        while True:
            passage = self._draft()
            words = len(passage.text.split())
            if _MIN_WORDS <= words <= _MAX_WORDS and _MIN_SENTENCES <= passage.sentences <= _MAX_SENTENCES:
                return passage

    def questions(self, passage: _Passage, count: int, first_id: int, split: str) -> list[QAExample]:
        """Returns questions that the passage answers, no two about the same fact."""
        examples: list[QAExample] = []
        for entity, relation in self.rng.sample(sorted(passage.facts), min(count, len(passage.facts))):
            fact = passage.facts[entity, relation]
            kind = passage.relations[relation]
            if kind.reverse_questions and self.rng.random() < 0.25:
                question = self.rng.choice(kind.reverse_questions).format(v=fact.value.text)
                answer = fact.entity
            else:
                question = self._question(kind, passage.entities[entity])
                answer = fact.value
            identifier = f"demo-{split}-{first_id + len(examples):04d}"
            examples.append(QAExample(identifier, question, passage.text, (answer,)))
        return examples

    def unanswerable(self, passage: _Passage) -> str:
        """Returns a question that the passage does not answer: about an absent entity, or for an absent fact."""
        absent = [relation for relation in passage.scenario.relations if relation not in passage.relations]
        if absent and self.rng.random() < 0.5:
            return self._question(self.rng.choice(absent), self.rng.choice(passage.entities))
        stranger = self._entities(passage.scenario, 1)[0]
        while _is_met(stranger, passage):
            stranger = self._entities(passage.scenario, 1)[0]
        return self._question(self.rng.choice(passage.relations), stranger)

    def _question(self, relation: _Relation, entity: _Entity) -> str:
        name = entity.name
        if entity.short_names and self.rng.random() < 0.4:
            name = self.rng.choice(entity.short_names)
        return self.rng.choice(relation.questions).format(e=name)

    def _draft(self) -> _Passage:
        scenario = self.rng.choice(_SCENARIOS)
        entities = self._entities(scenario, self.rng.choice((2, 2, 3)))
        relations = self.rng.sample(scenario.relations, self.rng.choice((2, 2, 3)))
        passage = _Passage(scenario, entities, relations)
        passage.used.update(part for entity in entities for part in entity.name.split())
        values = [[self._value(passage, relation.values) for _ in entities] for relation in relations]
        if self.rng.random() < 0.6:
            self._aside(passage, scenario.openers)
        layout = self.rng.choice((self._by_relation, self._by_entity, self._with_pronouns))
        layout(passage, values)
        if self.rng.random() < 0.5:
            self._aside(passage, scenario.closers)
        passage.text = passage.text.rstrip()
        return passage

    def _entities(self, scenario: _Scenario, count: int) -> list[_Entity]:
        if scenario.names:
            return [_Entity(name, scenario.article, "it") for name in self.rng.sample(scenario.names, count)]
        firsts = self.rng.sample(_WOMEN + _MEN, count)
        lasts = self.rng.sample(_SURNAMES, count)
        return [
            _Entity(f"{first} {last}", "", "she" if first in _WOMEN else "he", (first, last))
            for first, last in zip(firsts, lasts)
        ]

    def _value(self, passage: _Passage, values: Sequence[str]) -> str:
        """Returns a value whose words and numbers occur nowhere else in the passage."""
        value = self.rng.choice(values)
        while not passage.used.isdisjoint(_telling_words(value)):
            value = self.rng.choice(values)
        passage.used.update(_telling_words(value))
        return value

    def _aside(self, passage: _Passage, templates: tuple[str, ...]) -> None:
        template = self.rng.choice(templates)
        pools = {
            "person": _PEOPLE_NAMES,
            "town": _TOWNS,
            "year": _RECENT_YEARS,
            "day": _DAYS,
            "month": _MONTHS,
            "time": _TIMES,
        }
        words = {key: self._value(passage, pool) for key, pool in pools.items() if f"{{{key}}}" in template}
        passage.add(template.format(**words).removesuffix("."))
        passage.end_sentence()

    def _subject(self, passage: _Passage, index: int) -> Answer:
        entity = passage.entities[index]
        if entity.article:
            passage.add(entity.article)
        return passage.add(entity.name)

    def _predicate(
        self, passage: _Passage, entity: int, relation: int, values: list[list[str]], mention: Answer, template: str
    ) -> None:
        value = values[relation][entity]
        before, after = template.replace("{a}", "an" if value[0] in "aeiou" else "a").split("{v}")
        passage.add(f" {before}")
        place = passage.add(value)
        passage.add(after)
        passage.facts[entity, relation] = _Fact(place, mention)

    def _template(self, passage: _Passage, relation: int) -> str:
        return self.rng.choice(passage.relations[relation].predicates)

    def _by_relation(self, passage: _Passage, values: list[list[str]]) -> None:
        """Writes one sentence a relation: "Anna Reed works as a baker, while Paul Hale works as a nurse"."""
        count = len(passage.entities)
        for relation in range(len(passage.relations)):
            order = self.rng.sample(range(count), count)
            for position, entity in enumerate(order):
                if position:
                    passage.add(
                        self.rng.choice((", while ", ", whereas ", ", and ")) if position == count - 1 else ", "
                    )
                mention = self._subject(passage, entity)
                self._predicate(passage, entity, relation, values, mention, self._template(passage, relation))
            passage.end_sentence()

    def _by_entity(self, passage: _Passage, values: list[list[str]]) -> None:
        """Writes one sentence an entity: "Anna Reed works as a baker and grew up in Leeds"."""
        count = len(passage.relations)
        for entity in range(len(passage.entities)):
            mention = self._subject(passage, entity)
            for position, relation in enumerate(self.rng.sample(range(count), count)):
                if position:
                    passage.add(" and" if position == count - 1 else ",")
                self._predicate(passage, entity, relation, values, mention, self._template(passage, relation))
            passage.end_sentence()

    def _with_pronouns(self, passage: _Passage, values: list[list[str]]) -> None:
        """Writes two sentences an entity, the second with a pronoun: "Anna Reed works as a baker. She grew up in Leeds"."""
        count = len(passage.relations)
        for entity in range(len(passage.entities)):
            mention = self._subject(passage, entity)
            first, *rest = self.rng.sample(range(count), count)
            self._predicate(passage, entity, first, values, mention, self._template(passage, first))
            passage.end_sentence()
            passage.add(passage.entities[entity].pronoun)
            for position, relation in enumerate(rest):
                if position:
                    passage.add(" and")
                self._predicate(passage, entity, relation, values, mention, self._template(passage, relation))
            passage.end_sentence()


def _telling_words(value: str) -> list[str]:
    """Returns the words that distinguish a value from others of its kind, which its unit does not."""
    number = value.split()[0]
    return (
        [number] if number.isdigit() else [word for word in value.split() if word not in ("platform", "Room", "Hall")]
    )


def _is_met(entity: _Entity, passage: _Passage) -> bool:
    """Returns whether the passage names this entity, or a person with one of its names."""
    return entity in passage.entities or not passage.used.isdisjoint(entity.short_names)


def _split(rng: random.Random, size: int, split: str, seen: set[str]) -> tuple[list[QAExample], list[_Passage]]:
    """Returns the examples of a split, and for each the passage that it is about."""
    writer = _Writer(rng)
    examples: list[QAExample] = []
    passages: list[_Passage] = []
    while len(examples) < size:
        passage = writer.passage()
        if passage.text in seen:
            continue
        seen.add(passage.text)
        count = min(_QUESTIONS_PER_PASSAGE, size - len(examples))
        new = writer.questions(passage, count, len(examples), split)
        examples += new
        passages += [passage] * len(new)
    return examples, passages


def _without_answers(
    rng: random.Random, examples: list[QAExample], passages: list[_Passage], share: float
) -> list[QAExample]:
    """Returns the examples, with unanswerable questions in place of the given share of them."""
    writer = _Writer(rng)
    asked = {(example.question, example.passage) for example in examples}
    changed = list(examples)
    for index in sorted(rng.sample(range(len(examples)), round(share * len(examples)))):
        question = writer.unanswerable(passages[index])
        while (question, examples[index].passage) in asked:
            question = writer.unanswerable(passages[index])
        asked.add((question, examples[index].passage))
        changed[index] = QAExample(examples[index].id, question, examples[index].passage)
    return changed


def generate(seed: int = 11, unanswerable: float = 0.0) -> tuple[list[QAExample], list[QAExample]]:
    """Returns the train and the dev set, 1,200 and 200 questions. The same seed gives the same questions.

    Args:
        seed: the seed of all random choices.
        unanswerable: share of the questions that the passage does not answer, as in SQuAD v2.0. The other questions do
            not depend on it.

    Raises:
        ValueError: `unanswerable` is not between 0 and 1.
    """
    if not 0.0 <= unanswerable <= 1.0:
        raise ValueError(f"unanswerable is a share between 0 and 1, not {unanswerable}")
    rng = random.Random(seed)
    seen: set[str] = set()
    splits = [_split(rng, TRAIN_SIZE, "train", seen), _split(rng, DEV_SIZE, "dev", seen)]
    if unanswerable:
        rng = random.Random(seed + 1)
        train, dev = (_without_answers(rng, examples, passages, unanswerable) for examples, passages in splits)
        return train, dev
    (train, _), (dev, _) = splits
    return train, dev
