import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

import static java.nio.charset.StandardCharsets.UTF_8;

/**
 * Asks what stands on standard input, one JSON query a line, and prints each reply: its status, milliseconds, the JSON.
 *
 * <p>Arguments: the Kafka address, and the topics' prefix if it is not "modelless". Exit status 1 if a query got no reply.
 */
public class Ask {
    static final Duration PATIENCE = Duration.ofSeconds(60);

    public static void main(String[] arguments) throws Exception {
        String servers = arguments[0], prefix = arguments.length > 1 ? arguments[1] : "modelless";
        var reading = Map.<String, Object>of("bootstrap.servers", servers,
            "key.deserializer", ByteArrayDeserializer.class, "value.deserializer", ByteArrayDeserializer.class);
        var writing = Map.<String, Object>of("bootstrap.servers", servers,
            "key.serializer", ByteArraySerializer.class, "value.serializer", ByteArraySerializer.class);
        try (var consumer = new KafkaConsumer<byte[], byte[]>(reading);
             var producer = new KafkaProducer<byte[], byte[]>(writing)) {
            TopicPartition mine = pin(consumer, prefix + ".replies");
            Map<String, Long> open = new ConcurrentHashMap<>();  // when it was sent, by id
            String run = UUID.randomUUID().toString();
            int number = 0;
            for (String query : new BufferedReader(new InputStreamReader(System.in, UTF_8)).lines().toList()) {
                String id = run + "-" + number++;
                var record = new ProducerRecord<byte[], byte[]>(prefix + ".queries", query.getBytes(UTF_8));
                record.headers()
                    .add("modelless-id", id.getBytes(UTF_8))
                    .add("modelless-reply-topic", mine.topic().getBytes(UTF_8))
                    .add("modelless-reply-partition", Integer.toString(mine.partition()).getBytes(UTF_8));
                open.put(id, System.nanoTime());
                producer.send(record, (written, error) -> {
                    if (error != null) {
                        System.err.println(id + " was not written: " + error);
                    }
                });
            }
            producer.flush();
            long end = System.nanoTime() + PATIENCE.toNanos();
            while (!open.isEmpty() && System.nanoTime() < end) {
                for (var reply : consumer.poll(Duration.ofMillis(100))) {
                    Long sent = open.remove(header(reply, "modelless-id"));
                    if (sent == null) {
                        continue;  // not ours, or a second reply: the first one counts
                    }
                    double milliseconds = (System.nanoTime() - sent) / 1e6;
                    String value = new String(reply.value(), UTF_8);
                    System.out.printf("%s\t%.1f ms\t%s%n", header(reply, "modelless-status"), milliseconds, value);
                }
            }
            if (!open.isEmpty()) {
                System.err.println("no reply to " + open.keySet());
                System.exit(1);
            }
        }
    }

    /** A partition of the reply topic to have replies sent to, read from its present end on. */
    static TopicPartition pin(KafkaConsumer<byte[], byte[]> consumer, String topic) {
        int partitions = consumer.partitionsFor(topic).size();
        if (partitions == 0) {
            throw new IllegalArgumentException("topic " + topic + " does not exist");
        }
        var mine = new TopicPartition(topic, ThreadLocalRandom.current().nextInt(partitions));
        consumer.assign(List.of(mine));
        consumer.seekToEnd(List.of(mine));
        consumer.position(mine);  // looks the end up now, before anything is asked
        return mine;
    }

    static String header(ConsumerRecord<byte[], byte[]> record, String name) {
        var header = record.headers().lastHeader(name);
        return header == null ? "" : new String(header.value(), UTF_8);
    }
}
