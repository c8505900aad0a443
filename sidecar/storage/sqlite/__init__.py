"""The outbox store that survives a crash: one SQLite file, one writer thread, rows unreadable without the key.

`store` belongs to the loop and decides what is written, `requests` is what it was asked for, `writer` is the thread
that writes it, `database` opens and reads the file, `sealing` is the encryption, `rows` the encoding of what is sealed.
"""
