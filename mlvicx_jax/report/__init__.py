"""What a run did, as one HTML page that opens from disk and prints.

`reading` takes a folder in and refuses what is damaged, `content` is what a section is made of,
`figures` draws, `template` makes HTML of it. The sections themselves are one file a subject; a new
one is a function of a run in such a file, named in `page`.
"""
