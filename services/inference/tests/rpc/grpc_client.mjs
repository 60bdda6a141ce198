// A client in JavaScript: every kind of call, metadata, a status with details, a deadline, a cancellation.
// node grpc_client.mjs <folder of node_modules> <host:port>; prints what it saw as JSON.
import { createRequire } from "node:module";
import path from "node:path";

const [folder, address] = process.argv.slice(2);
const grpc = createRequire(path.join(folder, "package.json"))("@grpc/grpc-js");
const client = new grpc.Client(address, grpc.credentials.createInsecure());
const same = (value) => value;
const of = (name) => `/everloop.test.Probe/${name}`;
const bytes = (text) => Buffer.from(text);
const deadline = (ms) => ({ deadline: Date.now() + ms });

const unary = (name, request, metadata = new grpc.Metadata(), options = deadline(10000)) =>
  new Promise((resolve) => {
    const seen = {};
    const call = client.makeUnaryRequest(of(name), same, same, request, metadata, options, (error, answer) => {
      seen.code = error ? error.code : 0;
      seen.details = error ? error.details : "";
      seen.answer = answer;
    });
    call.on("metadata", (initial) => (seen.initial = initial));
    call.on("status", (status) => resolve({ ...seen, trailing: status.metadata }));
  });

const ended = (call) =>
  new Promise((resolve) => {
    const answers = [];
    call.on("data", (answer) => answers.push(answer.toString()));
    call.on("error", () => {});
    call.on("status", (status) => resolve({ answers, code: status.code }));
  });

const seen = {};
seen.echo = (await unary("Echo", bytes("hello"))).answer.toString();
seen.large = (await unary("Echo", Buffer.alloc(3 << 20))).answer.length;

const metadata = new grpc.Metadata();
metadata.set("x-text", "plain");
metadata.set("x-raw-bin", Buffer.from([0, 1, 255]));
const told = await unary("Tell", bytes("a"), metadata);
seen.initial = [told.initial.get("x-text"), [...told.initial.get("x-raw-bin")[0]]];
seen.trailing = [told.trailing.get("x-text"), [...told.trailing.get("x-raw-bin")[0]]];

const explained = await unary("Explain", bytes(""));
seen.status = [explained.code, explained.details, explained.trailing.get("grpc-status-details-bin").length];
seen.unknown = (await unary("Nothing", bytes(""))).code;
seen.late = (await unary("Wait", bytes(""), new grpc.Metadata(), deadline(300))).code;

const many = client.makeServerStreamRequest(of("Count"), same, same, bytes("[5, 3]"), new grpc.Metadata(), deadline(10000));
seen.count = (await ended(many)).answers.length;

seen.total = await new Promise((resolve) => {
  const call = client.makeClientStreamRequest(of("Total"), same, same, new grpc.Metadata(), deadline(10000), (error, answer) =>
    resolve(error ? error.code : answer.toString()));
  for (let number = 0; number < 10; number++) call.write(Buffer.alloc(7));
  call.end();
});

const chat = client.makeBidiStreamRequest(of("Chat"), same, same, new grpc.Metadata(), deadline(10000));
const chatted = ended(chat);
for (const word of ["one", "two", "three"]) chat.write(bytes(word));
chat.end();
seen.chat = await chatted;

const held = client.makeServerStreamRequest(of("Hold"), same, same, bytes(""), new grpc.Metadata(), deadline(10000));
const cancelled = ended(held);
held.once("data", () => held.cancel());
seen.cancelled = (await cancelled).code;

const gzip = { ...deadline(10000) };
const packing = new grpc.Client(address, grpc.credentials.createInsecure(), { "grpc.default_compression_algorithm": 2 });
seen.packed = await new Promise((resolve) =>
  packing.makeUnaryRequest(of("Packed"), same, same, Buffer.alloc(100000), new grpc.Metadata(), gzip, (error, answer) =>
    resolve(error ? error.code : answer.length)));

seen.parallel = (await Promise.all([...Array(500).keys()].map((n) => unary("Echo", bytes(`${n}`)))))
  .filter((found, n) => found.answer.toString() === `${n}`).length;
console.log(JSON.stringify(seen));
client.close();
packing.close();
