"""The works that documents of the corpora's `dev_heldout/` come from, and a split by work.

Documents are pieces of longer works, and neither their ids nor any field tells which. The text
does: names and phrases that occur in one work only. Each work has a pattern of such cues, found by
reading the documents' beginnings and their rarest capitalized words. A document belongs to the work
whose cues it contains most often, if it contains them more than twice as often as the cues of any
work of the other half. Otherwise it is in neither half; the present corpora have no such document.

`shared_names` checks the split without the cues.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence

OUTER, VALIDATION = "outer", "validation"


@dataclasses.dataclass(frozen=True)
class Work:
    """A book, article or speech.

    Attributes:
        name: Name of the work.
        source: Field `source` of its documents.
        half: OUTER or VALIDATION.
        cues: Regular expression; every match counts.
    """

    name: str
    source: str
    half: str
    cues: str


@dataclasses.dataclass(frozen=True)
class HeldOutDocument:
    """A document of `dev_heldout/`.

    Attributes:
        id: Id of the document.
        text: Text of the document.
        source: Source of the document.
        work: Name of the work; empty if the cues do not tell.
        half: OUTER, VALIDATION, or empty.
    """

    id: str
    text: str
    source: str
    work: str
    half: str


def _works(source: str, half: str, *works: tuple[str, str]) -> tuple[Work, ...]:
    return tuple(Work(name, source, half, cues) for name, cues in works)


WORKS = (
    *_works(
        "gutenberg",
        OUTER,
        (
            "News from Nowhere",
            r"Dick|Hammond|Clara|Ellen|Annie|\b[Qq]uoth\b|said I\b|said she\b|Thames|Hammersmith"
            r"|Boffin|Walter Allen"
            r"|Morris|Trafalgar|Oxford|I was\b|\bguest\b|the Government|the workers",
        ),
    ),
    *_works(
        "gutenberg",
        VALIDATION,
        (
            "The Log School-House on the Columbia",
            r"Benjamin|Gretchen|Mrs\. Woods|Marlowe Mann|Jason Lee|Indian|Oregon|Columbia|Umatilla"
            r"|Potlatch|Whitman"
            r"|\bchief\b|Maquina|Jewett|Astor|Puget|eagle|bear\b",
        ),
    ),
    *_works(
        "us_speeches",
        OUTER,
        ("Madison, inaugural 1813", r"solemnity of an oath|prisoners o[fn]|British Isles"),
        (
            "Lincoln, inaugural 1861",
            r"Fellow-Citizens of the United States: In|Constitution and the Union|perpetual"
            r"|surrendered"
            r"|constitutional questions|domestic institutions",
        ),
        (
            "Ford, State of the Union 1975",
            r"FORD|energy (research|program)|Elk Hills|1985|Vladivostok|SALT|Consumer Price",
        ),
        (
            "Clinton, State of the Union 1998",
            r"CLINTON|\[Applause\]|child care|AmeriCorps|Internet|McCaffrey|Saddam|Kinslow"
            r"|new economy|sterile debate",
        ),
    ),
    *_works(
        "us_speeches",
        VALIDATION,
        (
            "Taft, inaugural 1909",
            r"\bnegro\b|tariff|Panama|Porto Rico|[Ii]nterstate|Dingley|Isthmus",
        ),
        (
            "Eisenhower, State of the Union 1953",
            r"EISENHOWER|Formosa|Indochina|Strasbourg|Hoover|tax structure|maintain adequate mil"
            r"|[Cc]ivil and social|Schuman",
        ),
        ("Eisenhower, inaugural 1957", r"Price of Peace|divided world"),
        (
            "Johnson, State of the Union 1964",
            r"JOHNSON|1964|President Kennedy|National Service Corps|Viet-Nam|outskirts of hope",
        ),
        (
            "Reagan, State of the Union 1987",
            r"REAGAN|Gramm-Rudman|quest for excellence|Parallel|James Madison|Sandinistas|Angola"
            r"|Nelle",
        ),
        ("G. W. Bush, inaugural 2005", r"Cheney|Koran|Homestead Act"),
    ),
    *_works("elife", OUTER, ("Ire1", r"Ire1|UPR|ER-stress|endoplasmic"), ("RET", r"\bRET\b")),
    *_works(
        "elife",
        VALIDATION,
        ("PRC2", r"PRC2|Ezh2|EED|Polycomb"),
        ("Bad medicine", r"Goldacre|pharmaceutical"),
    ),
    *_works(
        "wikitext2_raw",
        OUTER,
        ("Ironclad warship", r"\b[Ii]ronclads?\b|ramming|armou?red cruiser|ships?-of-the-line"),
        ("Ise-class battleship", r"\bIse\b|Hyūga|\bIJN\b"),
        ("Military history of Gibraltar during World War II", r"Gibraltar"),
        ("Second Battle of Naktong Bulge", r"Naktong|Yongsan|North Korean|9th Infantry"),
        ("Free Derry", r"Derry|Bogside|\bIRA\b"),
        ("American Beauty (1999 film)", r"American Beauty|Lester|Mendes|Burnham|\bBall\b|Spacey"),
        ("The Hustler (film)", r"Hustler|Rossen|Eddie|Tevis|Fats"),
        ("The Snowmen", r"Snowmen|Moffat|Clara|the Doctor|\bTARDIS\b|Vastra"),
        ("Nero", r"\bNero\b|Suetonius|Tacitus|Piso"),
        ("Tatwine", r"Tatwine?\b"),
        ("Manila", r"\bManila\b|barangay|Intramuros"),
        ("New York State Route 31B", r"NY 31B|Route 31B"),
        ("New York State Route 93", r"NY 93|Route 93"),
        ("Come What (ever) May", r"Stone Sour|Come What"),
        ("Hed PE", r"Hed PE|\bhed\b"),
        ("Independiente (Ricardo Arjona album)", r"Arjona|Independiente"),
        ("Operation USA", r"Operation USA|OpUSA|Eloise"),
    ),
    *_works(
        "wikitext2_raw",
        VALIDATION,
        (
            "2003 Pacific typhoon season",
            r"\bJTWC\b|\bJMA\b|PAGASA|typhoon|Typhoon|tropical (storm|depression|cyclone)",
        ),
        ("Typhoon Krosa (2013)", r"Krosa|Vinta|Cagayan"),
        ("1933 Treasure Coast hurricane", r"Treasure Coast|1933|Florida|Martin|St\. Lucie"),
        ("Olmec colossal heads", r"Olmec|[Cc]olossal|La Venta|San Lorenzo|Tres Zapotes"),
        ("Temnospondyli", r"[Tt]emnospond|stereospond|[Ll]issamphibia|Triassic|Permian"),
        ("Du Fu", r"Du Fu|Li Bai|Tang\b|Chengdu|Luoyang"),
        ("Head VI", r"\bBacon\b|Velázquez|Head (I|VI|V)\b|\bpope\b"),
        ("View of the World from 9th Avenue", r"View of the World|Steinberg|9th Avenue"),
        ("Little Gidding (poem)", r"Little Gidding|Eliot|Quartets"),
        ("The Portage to San Cristobal of A.H.", r"Portage|Steiner|Hitler|A\.H\."),
        ("Kirby's Block Ball", r"Kirby"),
        ("Brock Lesnar", r"Lesnar|\bWWE\b|WrestleMania|\bUFC\b"),
        ("Brad Stevens", r"Stevens|Butler|Bulldogs|Celtics"),
        ("Dick Rifenburg", r"Rifenburg"),
        ("Ben Amos", r"\bAmos\b|Manchester United"),
        ("2010 Claxton Shield", r"Claxton|Aces|Victoria|inning"),
        ("Chad at the 2008 Summer Olympics", r"\bChad\b"),
        ("Bintulu", r"Bintulu|Sarawak"),
        ("Prototype filter", r"capacitance|farad|impedance|prototype filter"),
    ),
)


def assign(identifier: str, text: str, source: str) -> HeldOutDocument:
    """Returns a document with its work and half, both empty if the cues do not tell.

    Args:
        identifier: Id of the document.
        text: Text of the document.
        source: Source of the document.
    """
    hits = {work: len(re.findall(work.cues, text)) for work in WORKS if work.source == source}
    best = max(hits, key=lambda work: hits[work], default=None)
    if best is not None:
        rival = max((count for work, count in hits.items() if work.half != best.half), default=0)
        if hits[best] > 2 * rival:
            return HeldOutDocument(identifier, text, source, best.name, best.half)
    return HeldOutDocument(identifier, text, source, "", "")


def shared_names(
    documents: Sequence[HeldOutDocument], at_most: int = 8
) -> list[tuple[int, str, str, list[str]]]:
    """Finds pairs of works that may be the same, by rare names that occur in both halves.

    Args:
        documents: The held-out documents.
        at_most: Maximum number of documents in which a rare name occurs.

    Returns:
        (number of shared rare names, work of the outer half, work of the validation half, the
        names), in descending order of the number.
    """
    holders: dict[str, set[int]] = collections.defaultdict(set)
    for index, document in enumerate(documents):
        # Most capitalized words inside a sentence are names.
        for name in re.findall(r"(?<=[a-z,] )[A-Z][\w'-]{3,}", document.text):
            holders[name].add(index)
    pairs: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    for name, indices in holders.items():
        if len(indices) <= at_most:
            for i in indices:
                for j in indices:
                    if documents[i].half == OUTER and documents[j].half == VALIDATION:
                        pairs[documents[i].work, documents[j].work].add(name)

    shared = [
        (len(names), outer, validation, sorted(names))
        for (outer, validation), names in pairs.items()
    ]
    return sorted(shared, key=lambda pair: (-pair[0], pair[1], pair[2]))
