// Ask asks what stands on standard input, one JSON query a line, and prints each reply: its status, milliseconds, the JSON.
//
// Arguments: the Kafka address, and the topics' prefix if it is not "modelless". Exit status 1 if a query got no reply.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const patience = 60 * time.Second

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: ask ADDRESS [PREFIX] < queries.jsonl")
	}
	prefix := "modelless"
	if len(os.Args) > 2 {
		prefix = os.Args[2]
	}
	if err := ask(strings.Split(os.Args[1], ","), prefix+".queries", prefix+".replies"); err != nil {
		log.Fatal(err)
	}
}

func ask(servers []string, queries, replies string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(servers...))
	if err != nil {
		return err
	}
	defer client.Close()

	// A partition of the reply topic to have replies sent to, read from its present end on.
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, replies)
	if err != nil {
		return err
	}
	var mine int32 // maps are walked in random order
	for partition, end := range ends[replies] {
		if end.Err != nil {
			return end.Err
		}
		mine = partition
		break
	}
	end, ok := ends.Lookup(replies, mine)
	if !ok {
		return fmt.Errorf("topic %s does not exist", replies)
	}
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{replies: {mine: kgo.NewOffset().At(end.Offset)}})

	run, open := rand.Text(), map[string]time.Time{} // when it was sent, by id
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for number := 0; lines.Scan(); number++ {
		id := fmt.Sprintf("%s-%d", run, number)
		open[id] = time.Now()
		query := &kgo.Record{
			Topic: queries,
			Value: []byte(lines.Text()),
			Headers: []kgo.RecordHeader{
				{Key: "modelless-id", Value: []byte(id)},
				{Key: "modelless-reply-topic", Value: []byte(replies)},
				{Key: "modelless-reply-partition", Value: []byte(strconv.Itoa(int(mine)))},
			},
		}
		client.Produce(ctx, query, func(_ *kgo.Record, err error) {
			if err != nil {
				log.Printf("%s was not written: %v", id, err)
			}
		})
	}
	if err := lines.Err(); err != nil {
		return err
	}
	for len(open) > 0 {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("%d queries got no reply", len(open))
		}
		fetches.EachRecord(func(reply *kgo.Record) {
			id := header(reply, "modelless-id")
			sent, ours := open[id]
			if !ours {
				return // not ours, or a second reply: the first one counts
			}
			delete(open, id)
			milliseconds := float64(time.Since(sent).Microseconds()) / 1000
			fmt.Printf("%s\t%.1f ms\t%s\n", header(reply, "modelless-status"), milliseconds, reply.Value)
		})
	}
	return nil
}

func header(record *kgo.Record, name string) string {
	for _, header := range record.Headers {
		if header.Key == name {
			return string(header.Value)
		}
	}
	return ""
}
