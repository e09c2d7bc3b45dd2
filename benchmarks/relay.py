"""The yardstick: a plain one-hop aiokafka relay. It reads queries in a group, decodes each, and writes a reply.

It does what any program between two topics must do, and nothing of what modelless is for: no checks, no choice, no
batching, no model, no ledger. The same acks, the same encoding, the same reply headers, commits every 200 ms.
"""

from __future__ import annotations

import asyncio
import sys

import msgpack
import numpy as np
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

OUTPUT = np.zeros(10, dtype="<f4").tobytes()


async def relay(servers: str, queries: str, replies: str) -> None:
    consumer = AIOKafkaConsumer(
        queries,
        bootstrap_servers=servers,
        group_id="relay",
        enable_auto_commit=True,
        auto_commit_interval_ms=200,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", max_batch_size=256 * 1024)
    await consumer.start()
    await producer.start()
    print("ready", flush=True)
    while True:
        for records in (await consumer.getmany(timeout_ms=200, max_records=500)).values():
            for record in records:
                query = msgpack.unpackb(record.value)
                query_id = dict(record.headers)["modelless-id"]
                reply = msgpack.packb(
                    {
                        "id": query_id.decode(),
                        "query": f"{record.topic}/{record.partition}/{record.offset}",
                        "status": "OK",
                        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 10], "data": OUTPUT}],
                    }
                )
                headers = [("modelless-id", query_id), ("modelless-status", b"OK")]
                partition = query["reply_partition"]
                await producer.send(replies, reply, key=record.key, partition=partition, headers=headers)


if __name__ == "__main__":
    loop_factory = uvloop.new_event_loop if sys.argv[4] == "uvloop" else None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(relay(*sys.argv[1:4]))
