// OpenAI's client for Node against a server at BASE_URL; MODEL is its model's name.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const model = process.env.MODEL;
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is 58 + 67?" }];
const weather = {
  type: "function",
  function: {
    name: "weather",
    strict: true,
    parameters: {
      type: "object",
      properties: { city: { enum: ["Bremen", "Kiel"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};

test("models are listed", async () => {
  const { data } = await client.models.list();
  assert.deepEqual(data.map((one) => one.id), [model]);
});

test("a conversation is answered whole", async () => {
  const done = await client.chat.completions.create({ model, messages, temperature: 0 });
  const [choice] = done.choices;
  assert.equal(choice.message.content, "58 + 67 = 125");
  assert.match(choice.message.reasoning_content, /carry 1/);
  assert.equal(choice.finish_reason, "stop");
  assert.equal(done.usage.prompt_tokens, 15);
  assert.equal(done.usage.total_tokens, done.usage.prompt_tokens + done.usage.completion_tokens);
});

test("a stream is the same text in pieces, with usage at its end", async () => {
  const stream = await client.chat.completions.create({
    model, messages, temperature: 0, stream: true, stream_options: { include_usage: true },
  });
  let text = "", pieces = 0, reason = null, usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    reason = chunk.choices[0]?.finish_reason ?? reason;
    usage = chunk.usage ?? usage;
    pieces += 1;
  }
  assert.equal(text, "58 + 67 = 125");
  assert.equal(reason, "stop");
  assert.equal(usage.completion_tokens, 36);
  assert.ok(pieces > 10);
});

test("the client's own reader of streams puts the answer together", async () => {
  const stream = client.chat.completions.stream({ model, messages, temperature: 0 });
  assert.equal(await stream.finalContent(), "58 + 67 = 125");
});

test("a text is continued", async () => {
  const asked = { model, prompt: "To be, or not", temperature: 0 };
  const done = await client.completions.create(asked);
  assert.equal(done.usage.completion_tokens, 16);
  let text = "";
  for await (const chunk of await client.completions.create({ ...asked, stream: true })) {
    text += chunk.choices[0].text;
  }
  assert.equal(text, done.choices[0].text);
});

test("a tool is called, and a schema kept", async () => {
  const called = await client.chat.completions.create({
    model, messages, temperature: 0, tools: [weather], tool_choice: "required",
    parallel_tool_calls: false,
  });
  const [call] = called.choices[0].message.tool_calls;
  assert.equal(called.choices[0].finish_reason, "tool_calls");
  assert.equal(call.function.name, "weather");
  assert.match(JSON.parse(call.function.arguments).city, /^(Bremen|Kiel)$/);
  const { parameters: schema } = weather.function;
  const held = await client.chat.completions.create({
    model, messages, temperature: 0,
    response_format: { type: "json_schema", json_schema: { name: "it", strict: true, schema } },
  });
  assert.deepEqual(Object.keys(JSON.parse(held.choices[0].message.content)), ["city"]);
});

test("a request that is aborted ends, and the next is answered", async () => {
  const endless = { model, messages, temperature: 1.5, max_tokens: 400, seed: 1 };
  const asked = client.chat.completions.create(endless, { signal: AbortSignal.timeout(20) });
  await assert.rejects(asked, OpenAI.APIUserAbortError);
  const stream = await client.chat.completions.create({ ...endless, stream: true });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.reasoning_content) break; // the client aborts what is left
  }
  assert.ok(stream.controller.signal.aborted);
  const done = await client.chat.completions.create({ model, messages, temperature: 0 });
  assert.equal(done.choices[0].message.content, "58 + 67 = 125");
});

test("errors are the client's own", async () => {
  const ask = (more) => client.chat.completions.create({ model, messages, ...more });
  await assert.rejects(ask({ model: "gpt-4o" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.status, error.code, error.param], [404, "model_not_found", "model"]);
    return true;
  });
  await assert.rejects(ask({ foo: 1 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "foo");
    return true;
  });
  await assert.rejects(ask({ messages: [{ role: "user", content: "word ".repeat(600) }] }), {
    code: "context_length_exceeded",
  });
  await assert.rejects(ask({ max_tokens: 0, stream: true }), OpenAI.BadRequestError);
});
