"""SQL macros that read what shops write into the cells of a table: prices, lists and photos.

`price_from(d, point)`
    the number of the digits `d` of a price. The last of two kinds of separators is the decimal one, and so is a
    single one that is not before three digits. `point` decides what `1.299` or `1,299` is: 1.299 if it is the
    separator, 1299 otherwise.
`digits(t)`
    the digits and separators of a price, without currency and blanks; NULL for other texts, such as `3 to 5`.
`is_notation(t)`, `parts(t)`
    whether a text is a list as Python or NumPy print it, and the texts in it.
`cell_images(t)`
    the photos that a cell names, in order: a list in JSON, Python or NumPy, objects with URLs, or URLs that are
    separated by blanks, commas, semicolons or bars.
`as_url(t, has_photos)`
    a photo as a URL: blanks escaped, entities replaced, a missing scheme added; other texts stay as they are.
"""

from typing import Final

MACROS: Final = r"""
CREATE OR REPLACE MACRO digits(t) AS nullif(regexp_replace(regexp_extract(t,
    '^(?:\p{L}{1,3}[.]?)?[\s\p{Z}]*\p{Sc}?[\s\p{Z}]*((?:[0-9]|[.,][0-9])[0-9.,''\x{2019}\s\p{Z}]*?)'
    || '(?:[.,]?[-\x{2013}\x{2014}])?[\s\p{Z}]*\p{Sc}?[\s\p{Z}]*(?:\p{L}{1,3}[.]?)?$', 1), '[^0-9.,]', '', 'g'), '');
CREATE OR REPLACE MACRO price_from(d, point) AS TRY_CAST(CASE
    WHEN contains(d, '.') AND contains(d, ',') THEN CASE
        WHEN strpos(reverse(d), '.') < strpos(reverse(d), ',') THEN replace(d, ',', '')
        ELSE replace(replace(d, '.', ''), ',', '.') END
    WHEN regexp_full_match(d, '[1-9][0-9]{0,2}[.,][0-9]{3}') AND contains(d, coalesce(nullif(point, ''), '?'))
        THEN replace(d, ',', '.')
    WHEN regexp_full_match(d, '[1-9][0-9]{0,2}(([.][0-9]{2,3})*[.][0-9]{3}|(,[0-9]{2,3})*,[0-9]{3})')
        THEN regexp_replace(d, '[.,]', '', 'g')
    ELSE replace(d, ',', '.') END AS DOUBLE);
CREATE OR REPLACE MACRO is_notation(t) AS regexp_full_match(t,
    $$(?s)\s*\[\s*(?:(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*,?\s*)*\]\s*$$);
CREATE OR REPLACE MACRO parts(t) AS list_transform(
    regexp_extract_all(t, $$'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"$$),
    lambda x: regexp_replace(x[2:-2], $$\\(.)$$, '\1', 'g'));
CREATE OR REPLACE MACRO preferred(t) AS coalesce(
    nullif(regexp_extract(t, $$(?s)['"]large['"]\s*:\s*(?:array\()?\[([^\]]*)\]$$, 1), ''),
    nullif(array_to_string(regexp_extract_all(t, $$['"](?:large|url|src)['"]\s*:\s*['"]([^'"]+)$$, 1), chr(10)), ''),
    t);
CREATE OR REPLACE MACRO cell_images(t) AS CASE
    WHEN t IS NULL THEN []
    WHEN NOT regexp_matches(t, '^\s*[\[{]') THEN string_split(
        regexp_replace(t, '(?i)[\s,;|]+((?:https?:)?//)', chr(10) || '\1', 'g'), chr(10))
    WHEN json_valid(t) AND json_type(t) = 'ARRAY' AND NOT contains(t, '{') THEN from_json(t, '["VARCHAR"]')
    WHEN is_notation(t) THEN parts(t)
    ELSE regexp_extract_all(preferred(replace(t, '\/', '/')), $$(?i)(?:https?:)?//[^\s'"<>\[\]{}]+$$) END;
CREATE OR REPLACE MACRO as_url(t, has_photos) AS CASE
    WHEN regexp_matches(t, '(?i)^https?://') THEN replace(replace(t, '&amp;', '&'), ' ', '%20')
    WHEN starts_with(t, '//') THEN 'https:' || replace(replace(t, '&amp;', '&'), ' ', '%20')
    WHEN NOT has_photos AND regexp_matches(t, '(?i)^[a-z0-9-]+([.][a-z0-9-]+)+(:[0-9]+)?/')
        THEN 'https://' || replace(replace(t, '&amp;', '&'), ' ', '%20')
    ELSE t END;
"""
