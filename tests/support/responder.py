"""A small system for tests of the client: it answers as a query's metadata says."""

from __future__ import annotations

import asyncio
from typing import Any

from modelless.codec import decode_cancel, decode_query, encode_reply
from modelless.config import Config
from modelless.headers import read_headers
from modelless.kafka import make_consumer, make_producer, stop_within
from modelless.messages import Query, Reply
from modelless.topics import Topics


class Responder:
    """Echoes the inputs as outputs. ``metadata["do"]``: ``ignore``, ``twice``, or a status to answer with."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.topics = Topics(config.kafka.topic_prefix)
        self.queries: list[tuple[str, Query]] = []
        self.cancelled: asyncio.Queue[str | None] = asyncio.Queue()
        self.arrived = asyncio.Event()
        self.keys: list[bytes | None] = []

    async def __aenter__(self) -> Responder:
        self.consumer = make_consumer(
            self.config, self.topics.queries, self.topics.cancel, self.topics.task_queries("digits"), group_id=None
        )
        self.producer = make_producer(self.config)
        await asyncio.gather(self.consumer.start(), self.producer.start())
        self.task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await asyncio.gather(stop_within(self.consumer), stop_within(self.producer))

    async def run(self) -> None:
        while True:
            for records in (await self.consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    if record.topic == self.topics.cancel:
                        self.cancelled.put_nowait(decode_cancel(record.value).id)
                    else:
                        await self.answer(record)

    async def answer(self, record: Any) -> None:
        query, _ = decode_query(record.value, read_headers(record.headers))
        self.queries.append((record.topic, query))
        self.keys.append(record.key)
        self.arrived.set()
        do = query.metadata.get("do", "OK")
        if do == "ignore":
            return
        status = "OK" if do == "twice" else do
        reply = Reply(
            id=query.id,
            query=f"{record.topic}/{record.partition}/{record.offset}",
            status=status,
            message=None if status == "OK" else f"answered with {status}",
            outputs=query.inputs if status == "OK" else (),
            model="echo",
            version=1,
            retry_after_ms=40.0 if status == "RESOURCE_EXHAUSTED" else None,
        )
        for _ in range(2 if do == "twice" else 1):
            await self.producer.send(
                query.reply_topic or self.topics.replies,
                encode_reply(reply),
                partition=query.reply_partition,
                headers=[("modelless-id", query.id.encode())],
            )
