"""The explorer: one versioned JSON document about artifacts, and a page of HTML that shows it without a network.

Sections of the document are functions of a subject, in a file each (:mod:`moec.exploring.document` lists them). The
page's program is built from the folder ``explorer`` and reads the document alone.
"""
