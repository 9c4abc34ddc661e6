"""What a caller asks for: fields, checks, limits and the parameters that travel in a picture. Imports no MAX."""
