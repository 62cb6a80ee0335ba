"""Short reviews, easy and hard. A bag of words can only guess the sentiment of the hard ones.

Every text is made here from hand-written words and sentence frames. An easy text states one opinion. A hard text has
words of both polarities, or negates them, so that only their order or whose opinion they are tells the label. Each
kind of text (stratum) has one rule:

- contrast: the main clause decides: the clause after "but", or the clause without "although";
- negation: the frame reverses its clause ("nobody could claim that ...") or does not ("nobody could deny that ...");
- opinion: the writer's opinion decides, not somebody else's;
- expectation: what happened decides, not what was expected;
- change: the present decides, not the past;
- stacked: a contrast with one negated clause.

Three rules keep single words and pairs of words from giving the label away. Within a hard stratum, words and frames are
drawn independently of the label. The deciding clause comes first about as often as last. A word of sentiment that does
not end the text is followed by words from the same list in every clause, so that pairs such as "awful but" never form.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.data.examples import ClassificationExample

LABELS = ("negative", "positive")
TRAIN_SIZE = 2400
DEV_SIZE = 400

# Percentage of each stratum; all but "easy" are hard.
STRATA = {
    "easy": 45,
    "contrast": 15,
    "negation": 14,
    "opinion": 11,
    "expectation": 8,
    "change": 4,
    "stacked": 3,
}

# Every sixth pair of a noun and an adjective, by its checksum, is kept out of the training texts.
_HELD_OUT_EVERY = 6


@dataclass(frozen=True)
class StratifiedExample:
    """An example and its stratum, a key of `STRATA`."""

    stratum: str
    example: ClassificationExample


@dataclass(frozen=True)
class _Aspect:
    """Something that a review may praise or blame, with adjectives that fit it better than others."""

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    plural: bool = False

    @property
    def past(self) -> str:
        return "were" if self.plural else "was"

    @property
    def present(self) -> str:
        return "are" if self.plural else "is"


@dataclass(frozen=True)
class _Domain:
    """A kind of review: its aspects, names of the reviewed thing, neutral facts, and pairs of a past and a present time."""

    aspects: tuple[_Aspect, ...]
    things: tuple[str, ...]
    facts: tuple[str, ...]
    times: tuple[tuple[str, str], ...]


def _aspect(name: str, positive: str, negative: str, plural: bool = False) -> _Aspect:
    return _Aspect(name, tuple(positive.split()), tuple(negative.split()), plural)


_DOMAINS = (
    _Domain(  # restaurants
        aspects=(
            _aspect("soup", "delicious comforting fragrant", "bland watery lukewarm"),
            _aspect("bread", "fresh crusty tasty", "stale soggy tasteless"),
            _aspect("coffee", "rich fragrant smooth", "bitter burnt weak"),
            _aspect("waiter", "attentive friendly courteous", "rude surly inattentive"),
            _aspect("dessert", "heavenly delicious luscious", "sickly dry tasteless"),
            _aspect("service", "prompt warm attentive", "slow rude careless"),
            _aspect("menu", "inventive varied enticing", "confusing dull uninspired"),
            _aspect("seating", "comfortable cosy inviting", "cramped uncomfortable wobbly"),
            _aspect("fries", "crisp golden tasty", "greasy limp soggy", plural=True),
            _aspect("music", "soothing tasteful charming", "deafening grating irritating"),
            _aspect("vegetables", "fresh crisp tasty", "mushy overcooked tasteless", plural=True),
            _aspect("fish", "tender fresh succulent", "rubbery overcooked smelly"),
            _aspect("sauce", "silky tasty fragrant", "lumpy bland greasy"),
            _aspect("noodles", "springy tasty fragrant", "mushy bland lukewarm", plural=True),
        ),
        things=("meal", "dinner", "lunch", "evening", "visit"),
        facts=(
            "We sat by the window.",
            "There were six of us at the table.",
            "I booked for half past seven.",
            "The place is two streets from the station.",
            "We shared three plates between us.",
            "It was raining when we arrived.",
            "The room holds about forty people.",
            "They take cards and cash.",
            "I had walked past the place for years.",
            "We were celebrating a birthday.",
        ),
        times=(
            ("under the old owner", "under the new owner"),
            ("last year", "this year"),
            ("before the move", "since the move"),
            ("a year ago", "these days"),
        ),
    ),
    _Domain(  # apps
        aspects=(
            _aspect("interface", "intuitive elegant tidy", "confusing cluttered ugly"),
            _aspect("search", "fast accurate responsive", "slow inaccurate useless"),
            _aspect("login", "smooth quick painless", "broken slow maddening"),
            _aspect("sync", "seamless dependable fast", "flaky broken slow"),
            _aspect("notifications", "helpful timely discreet", "intrusive pointless irritating", plural=True),
            _aspect("tutorial", "clear helpful concise", "confusing patronising useless"),
            _aspect("widgets", "handy elegant responsive", "useless ugly buggy", plural=True),
            _aspect("support team", "helpful patient friendly", "rude unhelpful careless"),
            _aspect("map", "accurate clear detailed", "inaccurate blurry cluttered"),
            _aspect("editor", "powerful nimble intuitive", "crude laggy clunky"),
            _aspect("checkout", "quick painless smooth", "slow painful clunky"),
            _aspect("export feature", "handy dependable quick", "buggy useless clunky"),
        ),
        things=("app", "tool", "download", "program"),
        facts=(
            "I installed it on two phones.",
            "It takes about ninety megabytes.",
            "I use it on the train to work.",
            "There is a version for tablets too.",
            "I have the paid plan.",
            "It asked for my email address first.",
            "My phone is three years old.",
            "The icon is a blue square.",
            "It syncs with my calendar at night.",
            "I tried it for a fortnight.",
        ),
        times=(
            ("before the update", "since the update"),
            ("in the old version", "in the new version"),
            ("last spring", "today"),
            ("a year ago", "these days"),
        ),
    ),
    _Domain(  # gadgets
        aspects=(
            _aspect("battery", "durable dependable robust", "feeble weak unreliable"),
            _aspect("screen", "crisp vivid sharp", "dim blurry grainy"),
            _aspect("speaker", "rich clear powerful", "tinny muffled feeble"),
            _aspect("keyboard", "comfortable snappy responsive", "mushy stiff noisy"),
            _aspect("case", "sturdy elegant robust", "flimsy ugly bulky"),
            _aspect("camera", "sharp dependable responsive", "blurry sluggish unreliable"),
            _aspect("charger", "fast handy dependable", "flimsy slow unreliable"),
            _aspect("strap", "soft comfortable elegant", "scratchy stiff flimsy"),
            _aspect("buttons", "responsive solid snappy", "sticky loose wobbly", plural=True),
            _aspect("manual", "clear helpful concise", "incomprehensible useless confusing"),
            _aspect("hinge", "solid smooth sturdy", "wobbly loose stiff"),
            _aspect("microphone", "clear sharp dependable", "muffled noisy feeble"),
        ),
        things=("gadget", "device", "machine", "product"),
        facts=(
            "It came in a plain cardboard box.",
            "I ordered it on a Tuesday.",
            "Mine is the grey one.",
            "It weighs about as much as an apple.",
            "It replaced one that I had for six years.",
            "There are two cables in the box.",
            "I keep it on the kitchen shelf.",
            "It runs on two small batteries.",
            "The shop also sells a larger model.",
            "I bought it for my desk at work.",
        ),
        times=(
            ("before the repair", "since the repair"),
            ("in the old model", "in the new model"),
            ("last year", "this year"),
            ("a year ago", "these days"),
        ),
    ),
    _Domain(  # hotels
        aspects=(
            _aspect("room", "spotless cosy airy", "filthy cramped stuffy"),
            _aspect("bed", "comfortable cosy inviting", "lumpy uncomfortable creaky"),
            _aspect("breakfast", "generous delicious fresh", "stale meagre tasteless"),
            _aspect("shower", "powerful refreshing spotless", "feeble mouldy leaky"),
            _aspect("pool", "clean inviting refreshing", "dirty murky smelly"),
            _aspect("reception desk", "welcoming efficient friendly", "chaotic unhelpful rude"),
            _aspect("staff", "friendly gracious welcoming", "rude indifferent surly"),
            _aspect("view", "breathtaking beautiful stunning", "ugly depressing dreary"),
            _aspect("towels", "soft clean fluffy", "scratchy dirty smelly", plural=True),
            _aspect("lobby", "elegant inviting spotless", "shabby gloomy dirty"),
            _aspect("heating", "dependable efficient responsive", "broken noisy feeble"),
            _aspect("garden", "beautiful tidy charming", "neglected shabby dreary"),
        ),
        things=("stay", "hotel", "weekend", "trip"),
        facts=(
            "We were on the third floor.",
            "I stayed for two nights in March.",
            "The tram stops right outside.",
            "We had a room with two beds.",
            "There is a pharmacy next door.",
            "I was in town for a conference.",
            "Check-in starts at three.",
            "The building used to be a school.",
            "We drove there from the coast.",
            "There are about fifty rooms.",
        ),
        times=(
            ("before the renovation", "since the renovation"),
            ("under the old manager", "under the new manager"),
            ("last summer", "this summer"),
            ("a year ago", "these days"),
        ),
    ),
    _Domain(  # films and series
        aspects=(
            _aspect("plot", "gripping clever original", "dull predictable incoherent"),
            _aspect("acting", "convincing moving subtle", "wooden stiff unconvincing"),
            _aspect("dialogue", "witty clever sharp", "clumsy dull stilted"),
            _aspect("ending", "moving satisfying clever", "silly abrupt predictable"),
            _aspect("soundtrack", "beautiful moving tasteful", "grating forgettable irritating"),
            _aspect("pacing", "brisk gripping assured", "sluggish tedious uneven"),
            _aspect("lead actor", "charismatic convincing subtle", "wooden dull unconvincing"),
            _aspect("jokes", "witty hilarious clever", "stale crude tiresome", plural=True),
            _aspect("effects", "stunning convincing beautiful", "cheap ugly unconvincing", plural=True),
            _aspect("costumes", "beautiful stunning elegant", "cheap ugly drab", plural=True),
            _aspect("script", "clever witty original", "lazy incoherent tedious"),
            _aspect("camerawork", "stunning elegant assured", "shaky dizzying clumsy"),
        ),
        things=("film", "story", "show", "series"),
        facts=(
            "It runs for about two hours.",
            "I watched it on a Sunday afternoon.",
            "It is based on a novel.",
            "The story is set in a harbour town.",
            "We saw it in the small cinema.",
            "There is a short scene after the credits.",
            "I watched it with subtitles.",
            "The director also plays a baker.",
            "It takes place over three days.",
            "The hall was half full.",
        ),
        times=(
            ("in the first season", "in the second season"),
            ("under the old director", "under the new director"),
            ("last year", "this year"),
            ("a year ago", "these days"),
        ),
    ),
    _Domain(  # repairs and deliveries
        aspects=(
            _aspect("delivery", "prompt punctual painless", "late chaotic slow"),
            _aspect("driver", "courteous careful friendly", "rude reckless careless"),
            _aspect("packaging", "sturdy tidy robust", "flimsy torn messy"),
            _aspect("mechanic", "honest skilled courteous", "dishonest careless clumsy"),
            _aspect("repair", "quick solid painless", "botched slow messy"),
            _aspect("helpline", "helpful patient efficient", "useless rude unhelpful"),
            _aspect("booking", "easy painless quick", "confusing painful chaotic"),
            _aspect("invoice", "fair clear honest", "inflated confusing dishonest"),
            _aspect("technicians", "skilled courteous careful", "clumsy rude unskilled", plural=True),
            _aspect("website", "clear handy responsive", "confusing broken clunky"),
            _aspect("estimate", "fair accurate honest", "inflated vague inaccurate"),
            _aspect("workmanship", "careful solid skilled", "botched careless messy"),
        ),
        things=("service", "experience", "company", "firm"),
        facts=(
            "They came on a Thursday morning.",
            "The workshop is behind the supermarket.",
            "I paid by card.",
            "The van was white.",
            "I had called them the day before.",
            "It was a washing machine from the nineties.",
            "The parcel weighed four kilos.",
            "They also do bicycles.",
            "My flat is on the fifth floor.",
            "There were two men and a ladder.",
        ),
        times=(
            ("under the old boss", "under the new boss"),
            ("before the merger", "since the merger"),
            ("last winter", "this winter"),
            ("a year ago", "these days"),
        ),
    ),
)

# Indexed by polarity: 0 is negative, 1 is positive, as in LABELS.
_ADJECTIVES = (
    tuple(
        "awful terrible dreadful horrible disappointing poor dismal unpleasant frustrating annoying mediocre lousy "
        "pathetic atrocious appalling miserable horrendous second-rate abysmal woeful bad hopeless ghastly "
        "substandard".split()
    ),
    tuple(
        "superb excellent wonderful brilliant delightful impressive outstanding fantastic great lovely pleasing "
        "first-rate terrific marvellous splendid exceptional fabulous stellar amazing good perfect top-notch "
        "magnificent enjoyable".split()
    ),
)
_VERBS = (
    ("hated", "disliked", "loathed", "detested", "resented", "despised"),
    ("loved", "liked", "adored", "enjoyed", "admired", "appreciated"),
)
# What an aspect did to the writer.
_DEEDS = (
    (
        "let me down",
        "spoiled my week",
        "fell short of every promise",
        "left me fuming",
        "deserved a complaint",
        "lost my trust",
        "put me in a foul mood",
        "ruined the whole thing",
        "drove me up the wall",
        "got on my nerves",
    ),
    (
        "won me over",
        "made my week",
        "lived up to every promise",
        "left me beaming",
        "deserved a standing ovation",
        "earned my trust",
        "put me in a sunny mood",
        "saved the whole thing",
        "brought a smile to my face",
        "exceeded my hopes",
    ),
)
_MOODS = (
    ("gloomy", "bored", "angry", "tense", "miserable", "irritated", "let down", "fed up", "sad"),
    ("cheerful", "charmed", "delighted", "relaxed", "thrilled", "amused", "well cared for", "at ease", "happy"),
)
_INTENSIFIERS = ("really", "truly", "simply", "plainly", "genuinely", "frankly", "clearly", "undeniably")
_VERB_ADVERBS = ("really", "truly", "simply", "genuinely", "clearly", "openly", "honestly")
_TIME_TAILS = ("this time", "that day", "last week", "at the weekend", "on the day", "the other day", "this month")
_DEGREE_TAILS = (
    "in every way",
    "from start to finish",
    "on the whole",
    "by any measure",
    "through and through",
    "more often than not",
)
_TAILS = _TIME_TAILS + _DEGREE_TAILS

_PEOPLE = (
    ("my sister", "her"),
    ("my brother", "his"),
    ("my friend Ana", "her"),
    ("my boss", "his"),
    ("my neighbour", "her"),
    ("my cousin", "his"),
    ("the critic in the paper", "his"),
    ("my flatmate", "his"),
    ("a colleague of mine", "her"),
    ("my father", "his"),
    ("my daughter", "her"),
    ("my aunt", "her"),
    ("the woman behind us", "her"),
    ("my old teacher", "his"),
)

# Only easy texts end with one of these.
_CLOSERS = (
    ("Avoid.", "One star from me.", "Save your money.", "I want my money back.", "Do yourself a favour and stay away."),
    ("Recommended.", "Five stars from me.", "Worth the money.", "I would choose it again.", "Go and see for yourself."),
)

# {d} is the clause that decides, {s} the other one.
_CONTRASTS_DECIDED_LAST = (
    "{s}, but {d}.",
    "{s}, yet {d}.",
    "Although {s}, {d}.",
    "Even though {s}, {d}.",
    "While it is true that {s}, {d}.",
    "{s}. Still, {d}.",
    "Granted, {s}. But {d}.",
    "Yes, {s}, but what counts is that {d}.",
)
_CONTRASTS_DECIDED_FIRST = (
    "{d}, although {s}.",
    "{d}, even if {s}.",
    "{d}, even though {s}.",
    "{d}, despite the fact that {s}.",
    "What counts is that {d}, although {s}.",
    "{d}, and that outweighs the fact that {s}.",
    "It hardly matters that {s}, because {d}.",
    "{d}. It hardly matters that {s}.",
)

# Frames around a clause. The lists share most of their words, so that no word alone tells which list it is.
_TURNING_CLAUSE = (
    "I cannot say that {c}.",
    "Nobody could claim that {c}.",
    "It is not true that {c}.",
    "I would never say that {c}.",
    "It would be wrong to say that {c}.",
    "There is no truth in the claim that {c}.",
    "Only a liar would say that {c}.",
    "I don't think that {c}.",
    "At no point did I think that {c}.",
)
_KEEPING_CLAUSE = (
    "I cannot say often enough that {c}.",
    "Nobody could deny that {c}.",
    "It is true, no question, that {c}.",
    "I would never deny that {c}.",
    "It would be wrong to deny that {c}.",
    "There is no doubt in my mind that {c}.",
    "Only a liar would deny that {c}.",
    "I don't mind saying that {c}.",
    "It is no secret that {c}.",
)
_TURNING_THING = (
    "This was anything but {t}.",
    "This was nothing like {t}.",
    "I would not call this {t}.",
    "This was hardly {t}.",
    "By no means was this {t}.",
    "Not for a single moment was this {t}.",
    "Never did this feel like {t}.",
)
_KEEPING_THING = (
    "This was nothing but {t}.",
    "This was nothing less than {t}.",
    "I would not hesitate to call this {t}.",
    "This was no doubt {t}.",
    "Make no mistake, this was {t}.",
    "There was not a single moment when this was not {t}.",
    "There is no other word for it, this was {t}.",
)

_AGREEMENTS = ("and I agree", "and I think the same", "and I see it {their} way", "and that is my view too")
_DISAGREEMENTS = (
    "and I disagree",
    "and I think the opposite",
    "and I do not see it {their} way",
    "and that is not my view at all",
)

_EXPECTATIONS_DECIDED_LAST = (
    "I expected {s}, and what I got was {d}.",
    "Everything pointed to {s}. It was {d}.",
    "I was ready for {s} and had {d}.",
    "Far from being {s}, this was {d}.",
    "This was not {s} but {d}.",
    "The reviews made me think of {s}; in reality this was {d}.",
)
_EXPECTATIONS_DECIDED_FIRST = (
    "What I got was {d}, and I had expected {s}.",
    "It was {d}, although everything had pointed to {s}.",
    "I had {d} where I was ready for {s}.",
    "This was {d}, far from being {s}.",
    "This was {d} and not {s}.",
    "In reality this was {d}; the reviews had made me think of {s}.",
)
_MOOD_SWINGS_DECIDED_LAST = (
    "I started out feeling {s} {s_tail} and ended up feeling {d} {d_tail}.",
    "Having begun by feeling {s} {s_tail}, I finished feeling {d} {d_tail}.",
    "I thought I would be left feeling {s} {s_tail}; I was left feeling {d} {d_tail}.",
)
_MOOD_SWINGS_DECIDED_FIRST = (
    "I ended up feeling {d} {d_tail} after starting out feeling {s} {s_tail}.",
    "I finished feeling {d} {d_tail}, having begun by feeling {s} {s_tail}.",
    "I was left feeling {d} {d_tail}; I thought I would be left feeling {s} {s_tail}.",
)


def is_held_out(noun: str, adjective: str) -> bool:
    """Returns whether only dev texts may have this pair of a noun and an adjective."""
    return zlib.crc32(f"{noun} {adjective}".encode()) % _HELD_OUT_EVERY == 0


class _Writer:
    """Writes the texts of one split. Only those of `dev` use the held-out pairs of noun and adjective, often."""

    def __init__(self, rng: random.Random, dev: bool):
        self.rng = rng
        self.dev = dev
        self.domain = _DOMAINS[0]

    def write(self, stratum: str, polarity: int) -> str:
        self.domain = self.rng.choice(_DOMAINS)
        maker: Callable[[int], str] = getattr(self, stratum)
        text = maker(polarity)
        # Plain facts vary the length, and the place where the opinion stands, in easy and in hard texts.
        for fact in self.rng.sample(self.domain.facts, self.rng.choice((0, 0, 0, 0, 0, 0, 1, 1, 1, 2))):
            text = f"{fact} {text}" if self.rng.random() < 0.5 else f"{text} {fact}"
        return _as_sentences(text)

    # One method for each stratum; it takes the polarity that the whole text must have.

    def easy(self, polarity: int) -> str:
        aspect, other = self._aspects()
        adjective = self._adjective(aspect.name, polarity, aspect)
        kind = self.rng.choice((0, 1, 2, 2, 2, 3, 4, 5))
        if kind == 0:
            text = f"{self.rng.choice(_INTENSIFIERS)} {adjective} {aspect.name}."
        elif kind == 1:
            text = f"{self.rng.choice(_VERBS[polarity])} the {aspect.name} {self.rng.choice(_TAILS)}."
        elif kind == 2:
            text = f"{self._clause(aspect, polarity)} and {self._clause(other, polarity)}."
        elif kind == 3:
            text = f"this was {self._thing(polarity)}."
        elif kind == 4:
            text = f"I was left feeling {self.rng.choice(_MOODS[polarity])}."
        else:
            text = f"{self._clause(aspect, polarity)}."
        if self.rng.random() < 0.35:
            text = f"{text} {self.rng.choice(_CLOSERS[polarity])}"
        return text

    def contrast(self, polarity: int) -> str:
        deciding_aspect, other = self._aspects()
        return self._contrast(
            lambda last: self._clause(deciding_aspect, polarity, closed=not last),
            lambda last: self._clause(other, 1 - polarity, closed=not last),
        )

    def negation(self, polarity: int) -> str:
        turning = self.rng.random() < 0.5
        inner = 1 - polarity if turning else polarity
        if self.rng.random() < 0.6:
            frame = self.rng.choice(_TURNING_CLAUSE if turning else _KEEPING_CLAUSE)
            return frame.format(c=self._clause(self._aspects()[0], inner, tails=_TIME_TAILS))
        frame = self.rng.choice(_TURNING_THING if turning else _KEEPING_THING)
        return frame.format(t=self._thing(inner))

    def opinion(self, polarity: int) -> str:
        aspect = self._aspects()[0]
        person, their = self.rng.choice(_PEOPLE)
        kind = self.rng.randrange(3)
        if kind == 0:
            agrees = self.rng.random() < 0.5
            ending = self.rng.choice(_AGREEMENTS if agrees else _DISAGREEMENTS).format(their=their)
            thought = self._thought(person, aspect, polarity if agrees else 1 - polarity)
            return f"{thought}, {ending}."
        own_first = self.rng.random() < 0.5
        writers = [("I", polarity), (person, 1 - polarity)]
        (first, first_polarity), (second, second_polarity) = writers if own_first else writers[::-1]
        if kind == 1:
            before = self._thought(first, aspect, first_polarity)
            after = self._thought(second, aspect, second_polarity, again=True)
            return before + self.rng.choice(("; ", ", whereas ", ", while ", ". ")) + after + "."
        sources = {"I": "in my view", person: f"in {person}'s view"}
        if self.rng.random() < 0.5:
            sources = {"I": "my own verdict is that", person: f"{person} keeps saying that"}
        before = f"{sources[first]} the {aspect.name} {self._state(aspect, aspect.past, first_polarity)}"
        pronoun = "they" if aspect.plural else "it"
        after = f"{sources[second]} {pronoun} {self._state(aspect, aspect.past, second_polarity)}"
        return before + self.rng.choice(("; ", ", while ", ". ")) + after + "."

    def expectation(self, polarity: int) -> str:
        last = self.rng.random() < 0.5
        if self.rng.random() < 0.4:
            frame = self.rng.choice(_MOOD_SWINGS_DECIDED_LAST if last else _MOOD_SWINGS_DECIDED_FIRST)
            first_tail, second_tail = self.rng.choice(_TIME_TAILS), self.rng.choice(_DEGREE_TAILS)
            if self.rng.random() < 0.5:
                first_tail, second_tail = second_tail, first_tail
            return frame.format(
                d=self.rng.choice(_MOODS[polarity]),
                s=self.rng.choice(_MOODS[1 - polarity]),
                d_tail=first_tail,
                s_tail=second_tail,
            )
        frame = self.rng.choice(_EXPECTATIONS_DECIDED_LAST if last else _EXPECTATIONS_DECIDED_FIRST)
        return frame.format(d=self._thing(polarity), s=self._thing(1 - polarity))

    def change(self, polarity: int) -> str:
        aspect = self._aspects()[0]
        past, now = self.rng.choice(self.domain.times)
        times = [(past, aspect.past, 1 - polarity), (now, aspect.present, polarity)]
        if self.rng.random() < 0.5:
            times.reverse()
        (first, first_verb, first_polarity), (second, second_verb, second_polarity) = times
        pronoun = "they" if aspect.plural else "it"
        return (
            f"{first} the {aspect.name} {self._state(aspect, first_verb, first_polarity)}"
            + self.rng.choice(("; ", ", and ", ". "))
            + f"{second} {pronoun} {self._state(aspect, second_verb, second_polarity)}."
        )

    def stacked(self, polarity: int) -> str:
        deciding_aspect, other = self._aspects()
        negate_deciding = self.rng.random() < 0.5

        def clause(aspect: _Aspect, wanted: int, negated: bool, last: bool) -> str:
            if not negated:
                return self._clause(aspect, wanted, closed=not last)
            turning = self.rng.random() < 0.5
            frame = self.rng.choice(_TURNING_CLAUSE if turning else _KEEPING_CLAUSE).removesuffix(".")
            inner = self._clause(aspect, 1 - wanted if turning else wanted, closed=not last, tails=_TIME_TAILS)
            return _lower_first(frame.format(c=inner))

        return self._contrast(
            lambda last: clause(deciding_aspect, polarity, negate_deciding, last),
            lambda last: clause(other, 1 - polarity, not negate_deciding, last),
        )

    # The parts of a text.

    def _contrast(self, deciding: Callable[[bool], str], other: Callable[[bool], str]) -> str:
        """Joins two clauses. The function that makes a clause gets whether the clause ends the sentence."""
        frames = _CONTRASTS_DECIDED_LAST if self.rng.random() < 0.5 else _CONTRASTS_DECIDED_FIRST
        frame = self.rng.choice(frames)
        deciding_last = frame.index("{d}") > frame.index("{s}")
        return frame.format(d=deciding(deciding_last), s=other(not deciding_last))

    def _aspects(self) -> tuple[_Aspect, _Aspect]:
        first, second = self.rng.sample(self.domain.aspects, 2)
        return first, second

    def _adjective(self, noun: str, polarity: int, aspect: _Aspect | None = None) -> str:
        words = _ADJECTIVES[polarity]
        if aspect is not None and self.rng.random() < 0.4:
            words = aspect.positive if polarity else aspect.negative
        held_out = [word for word in words if is_held_out(noun, word)]
        known = [word for word in words if not is_held_out(noun, word)]
        if self.dev and held_out and self.rng.random() < 0.5:
            return self.rng.choice(held_out)
        return self.rng.choice(known or _known_generic(noun, polarity))

    def _maybe_intensifier(self) -> str:
        return f"{self.rng.choice(_INTENSIFIERS)} " if self.rng.random() < 0.5 else ""

    def _maybe_tail(self, closed: bool, tails: tuple[str, ...]) -> str:
        return f" {self.rng.choice(tails)}" if closed or self.rng.random() < 0.4 else ""

    def _clause(self, aspect: _Aspect, polarity: int, *, closed: bool = False, tails: tuple[str, ...] = _TAILS) -> str:
        """Returns the writer's opinion on one aspect; a `closed` clause does not end in a word of sentiment."""
        kind = self.rng.randrange(6)
        if kind == 0:
            return f"I {self.rng.choice(_VERB_ADVERBS)} {self.rng.choice(_VERBS[polarity])} the {aspect.name}"
        if kind == 1:
            return f"the {aspect.name} {self.rng.choice(_DEEDS[polarity])}{self._maybe_tail(closed, tails)}"
        opening = (
            f"I found the {aspect.name}",
            f"the {aspect.name} struck me as",
            f"the {aspect.name} {aspect.past}",
            f"the {aspect.name} {aspect.past}",
        )[kind - 2]
        adjective = self._adjective(aspect.name, polarity, aspect)
        return f"{opening} {self._maybe_intensifier()}{adjective}{self._maybe_tail(closed, tails)}"

    def _thought(self, person: str, aspect: _Aspect, polarity: int, again: bool = False) -> str:
        """Returns what a person, or "I", thought of an aspect, in words that fit both."""
        pronoun = "them" if aspect.plural else "it"
        object_ = pronoun if again else f"the {aspect.name}"
        kind = self.rng.randrange(3)
        if kind == 0:
            return f"{person} {self.rng.choice(_VERB_ADVERBS)} {self.rng.choice(_VERBS[polarity])} {object_}"
        verb = ("found", "called")[kind - 1]
        adjective = self._adjective(aspect.name, polarity, aspect)
        return (
            f"{person} {verb} {object_} {self.rng.choice(_INTENSIFIERS)} {adjective} {self.rng.choice(_DEGREE_TAILS)}"
        )

    def _state(self, aspect: _Aspect, verb: str, polarity: int) -> str:
        # Always with an intensifier: else "is awful" would only occur in the present and "was awful" in the past.
        adjective = self._adjective(aspect.name, polarity, aspect)
        return f"{verb} {self.rng.choice(_INTENSIFIERS)} {adjective} {self.rng.choice(_DEGREE_TAILS)}"

    def _thing(self, polarity: int) -> str:
        """Returns the reviewed thing as a whole, with its article: "an awful meal"."""
        thing = self.rng.choice(self.domain.things)
        adjective = self._adjective(thing, polarity)
        intensifier = self._maybe_intensifier()
        return f"{_article(intensifier or adjective)} {intensifier}{adjective} {thing}"


def _known_generic(noun: str, polarity: int) -> list[str]:
    return [word for word in _ADJECTIVES[polarity] if not is_held_out(noun, word)]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _lower_first(text: str) -> str:
    return text if text.startswith(("I ", "I'")) else text[0].lower() + text[1:]


def _as_sentences(text: str) -> str:
    """Returns the text with a capital at the start of each sentence."""
    return re.sub(r"(^|[.] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def _quotas(size: int) -> dict[str, int]:
    """Returns how many of `size` examples each stratum has: even numbers, so that labels balance in each stratum."""
    quotas = {name: 2 * round(size * percent / 200) for name, percent in STRATA.items()}
    quotas["easy"] += size - sum(quotas.values())
    return quotas


def _split(rng: random.Random, size: int, dev: bool, seen: set[str]) -> list[StratifiedExample]:
    writer = _Writer(rng, dev)
    examples = []
    for stratum, count in _quotas(size).items():
        for index in range(count):
            polarity = index % 2
            text = writer.write(stratum, polarity)
            while _key(text) in seen:
                text = writer.write(stratum, polarity)
            seen.add(_key(text))
            examples.append(StratifiedExample(stratum, ClassificationExample(text=text, label=LABELS[polarity])))
    rng.shuffle(examples)
    return examples


def _key(text: str) -> str:
    """Returns a key that is equal for texts that differ in case and punctuation only."""
    return " ".join(re.findall(r"[a-z'-]+", text.lower()))


def generate_stratified(seed: int = 7) -> tuple[list[StratifiedExample], list[StratifiedExample]]:
    """Returns the train and the dev set, each example with its stratum. The same seed gives the same texts."""
    rng = random.Random(seed)
    seen: set[str] = set()
    train = _split(rng, TRAIN_SIZE, dev=False, seen=seen)
    dev = _split(rng, DEV_SIZE, dev=True, seen=seen)
    return train, dev


def generate(seed: int = 7) -> tuple[list[ClassificationExample], list[ClassificationExample]]:
    """Returns the train and the dev set, 2,400 and 400 reviews, half of them "negative" and half "positive"."""
    train, dev = generate_stratified(seed)
    return [item.example for item in train], [item.example for item in dev]
