"""The site of docs/: its pages gathered with what they link to, the page of the command line, links checked."""
