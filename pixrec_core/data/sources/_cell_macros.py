"""SQL macros that read what shops write into the cells of a table: prices, lists and photos.

`price_of(t, point)`
    the number in a price; NULL without `digits`. The last of two kinds of separators is the decimal one, and so is a
    single one that is not before three digits. `point` decides what `1.299` or `1,299` is: 1.299 if it is the
    separator, 1299 otherwise.
`digits(t)`
    the digits and separators of a price, without currency and blanks; NULL for other texts, such as `3 to 5`, `from 3`
    (in the languages that say it with at most three letters) and cents.
`is_notation(t)`, `parts(t)`
    whether a text is a list as Python or NumPy print it, and the texts in it.
`json_texts(t)`
    the texts of a list in JSON, of lists in it, and the names of objects in it.
`cell_images(t)`
    the photos that a cell names, in order: a list in JSON, Python or NumPy, objects with URLs, HTML, or URLs and names
    of image files that are separated by blanks, commas, semicolons or bars.
`names_nothing(t)`
    whether a text is empty but for brackets, commas and nulls.
`as_url(t, has_photos)`
    a photo as a URL: blanks escaped, entities replaced, a missing scheme added; other texts stay as they are.

A lambda over a list of one value binds it: an argument of a macro is computed wherever the macro names it.
"""

from typing import Final

MACROS: Final = r"""
CREATE OR REPLACE MACRO digits(t) AS CASE
    WHEN regexp_matches(t, '(?i)^(ab|av|bis|ca|da|od|von|dès)[.]?\s|[0-9]\s*(¢|p|ct)[.]?$') THEN NULL
    ELSE nullif(regexp_replace(regexp_extract(regexp_replace(t, '\p{L}', 'a', 'g'),
        '^(?:a{1,3}[.]?)?[\s\p{Z}]*\p{Sc}?[\s\p{Z}]*((?:[0-9]+|[.,][0-9]+)(?:[.,][0-9]*|[''\x{2019}\s\p{Z}][0-9]{3})*)'
        || '(?:[.,:]?[-\x{2013}\x{2014}])?[\s\p{Z}]*\p{Sc}?[\s\p{Z}]*(?:a{1,3}[.]?)?[\s\p{Z}]*[*]?$', 1),
        '[^0-9.,]', '', 'g'), '') END;
CREATE OR REPLACE MACRO price_of(t, point) AS list_transform([digits(t)], lambda d: TRY_CAST(CASE
    WHEN contains(d, '.') AND contains(d, ',') THEN CASE
        WHEN strpos(reverse(d), '.') < strpos(reverse(d), ',') THEN replace(d, ',', '')
        ELSE replace(replace(d, '.', ''), ',', '.') END
    WHEN regexp_full_match(d, '[1-9][0-9]{0,2}[.,][0-9]{3}') AND contains(d, coalesce(nullif(point, ''), '?'))
        THEN replace(d, ',', '.')
    WHEN regexp_full_match(d, '[1-9][0-9]{0,2}(([.][0-9]{2,3})*[.][0-9]{3}|(,[0-9]{2,3})*,[0-9]{3})')
        THEN regexp_replace(d, '[.,]', '', 'g')
    ELSE replace(d, ',', '.') END AS DOUBLE))[1];
CREATE OR REPLACE MACRO is_notation(t) AS regexp_full_match(t,
    $$(?s)\s*\[\s*(?:(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*,?\s*)*\]\s*$$);
CREATE OR REPLACE MACRO parts(t) AS list_transform(
    regexp_extract_all(t, $$'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"$$),
    lambda x: regexp_replace(x[2:-2], $$\\(.)$$, '\1', 'g'));
CREATE OR REPLACE MACRO json_text(j) AS CASE json_type(j)
    WHEN 'OBJECT' THEN coalesce(j ->> '$.name', j ->> '$.title', j ->> '$.label', j ->> '$.value')
    WHEN 'NULL' THEN NULL ELSE j ->> '$' END;
CREATE OR REPLACE MACRO json_texts(t) AS flatten(list_transform(from_json(t, '["JSON"]'), lambda x: CASE
    WHEN json_type(x) = 'ARRAY' THEN list_transform(from_json(x, '["JSON"]'), lambda y: json_text(y))
    ELSE [json_text(x)] END));
CREATE OR REPLACE MACRO names_nothing(t) AS
    regexp_full_match(t, '(?i)[\s\[\]{},]*((("[^"]*"|''[^'']*'')\s*:\s*)?(null|none|""|'''')[\s\[\]{},]*)*');
CREATE OR REPLACE MACRO preferred(t) AS coalesce(
    nullif(regexp_extract(t, $$(?s)['"]large['"]\s*:\s*(?:array\()?\[([^\]]*)\]$$, 1), ''),
    nullif(array_to_string(regexp_extract_all(
        t, $$['"](?:large|original|full|url|src)['"]\s*:\s*['"]([^'"]+)$$, 1), chr(10)), ''),
    t);
CREATE OR REPLACE MACRO urls_of(t) AS string_split(
    regexp_replace(t, '(?i)[\s,;|>^~]+((?:https?:)?//)', chr(10) || '\1', 'g'), chr(10));
CREATE OR REPLACE MACRO embedded_urls(t) AS regexp_extract_all(
    regexp_replace(t, '(?i)[,;|]\s*((?:https?:)?//)', chr(10) || '\1', 'g'),
    $$(?i)https?://[^\s'"<>\[\]{}]+|[\s'"]//[^\s'"<>\[\]{}]+$$);
CREATE OR REPLACE MACRO cell_images(t) AS CASE
    WHEN t IS NULL OR names_nothing(t) THEN []
    WHEN regexp_matches(t, '(?i)^\s*(https?:)?//') THEN urls_of(t)
    WHEN regexp_matches(t, '^\s*[<(=!]') THEN list_transform(embedded_urls(t), lambda x: rtrim(x, ')'))
    WHEN regexp_full_match(t, '(?i)([^,;|/{}<>\[\]]|/[^/])+[.](jpe?g|png|gif|webp|avif|bmp|tiff?)'
        || '(\s*[,;|]\s*([^,;|/{}<>\[\]]|/[^/])+[.](jpe?g|png|gif|webp|avif|bmp|tiff?))*\s*')
        THEN string_split_regex(t, '[,;|]')
    WHEN NOT regexp_matches(t, '^\s*[\[{]') THEN urls_of(t)
    WHEN json_valid(t) AND json_type(t) = 'ARRAY' AND NOT regexp_matches(t, '[{]|^\s*\[\s*\[')
        THEN from_json(t, '["VARCHAR"]')
    WHEN is_notation(t) THEN parts(t)
    ELSE embedded_urls(preferred(replace(t, '\/', '/'))) END;
CREATE OR REPLACE MACRO as_url(t, has_photos) AS CASE
    WHEN regexp_matches(t, '(?i)^https?://') THEN replace(replace(t, '&amp;', '&'), ' ', '%20')
    WHEN starts_with(t, '//') THEN 'https:' || replace(replace(t, '&amp;', '&'), ' ', '%20')
    WHEN NOT has_photos AND regexp_matches(t, '(?i)^[a-z0-9-]+([.][a-z0-9-]+)+(:[0-9]+)?/')
        THEN 'https://' || replace(replace(t, '&amp;', '&'), ' ', '%20')
    ELSE t END;
"""
