/*
 * The OpenAPI document as a page that people read: every operation with its parameters, body and answers, and every
 * object. Plain HTML without a script, made from the document itself, so that it can't say anything else.
 */

interface Schema {
  $ref?: string;
  type?: string | string[];
  description?: string;
  enum?: (string | number)[];
  items?: Schema;
  oneOf?: Schema[];
  anyOf?: Schema[];
  minimum?: number;
  maximum?: number;
  pattern?: string;
  required?: string[];
  properties?: Record<string, Schema>;
}

interface Operation {
  operationId: string;
  summary?: string;
  description?: string;
  security?: { token: string[] }[];
  parameters?: { name: string; in: string; required?: boolean; description?: string; schema: Schema }[];
  requestBody?: { content: Record<string, { schema: Schema }> };
  responses: Record<string, { description?: string; content?: Record<string, { schema: Schema }> }>;
}

/** What of an OpenAPI document the page shows. */
export interface OpenApiDocument {
  info: { title: string; version: string; description?: string };
  paths?: Record<string, Record<string, Operation>>;
  components?: { schemas?: Record<string, Schema> };
}

/** @returns a whole HTML page; its style sheet is `dashboard/docs.css` */
export function docsPage({ info, paths = {}, components }: OpenApiDocument): string {
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })),
  );
  const schemas = Object.entries(components?.schemas ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
  const contents = operations.map(
    ({ path, method, operation: { operationId, summary = "" } }) =>
      `<li><a href="#${operationId}"><code>${method} ${escape(path)}</code></a> ${escape(summary)}</li>`,
  );
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>${escape(info.title)} API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="dashboard/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="dashboard/docs.css">
</head>
<body>
<main>
<h1>${escape(info.title)} ${escape(info.version)}: the API</h1>
${text(info.description)}
<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1). For people: the <a href="./">dashboard</a>.</p>
<h2>Operations</h2>
<ul>${contents.join("\n")}</ul>
${operations.map(operationSection).join("\n")}
<h2>Objects</h2>
${schemas.map(([name, schema]) => schemaSection(name, schema)).join("\n")}
</main>
</body>
</html>
`;
}

function operationSection({ path, method, operation }: { path: string; method: string; operation: Operation }): string {
  const scope = operation.security?.[0]?.token[0];
  const parameters = (operation.parameters ?? []).map((parameter) => [
    `<code>${escape(parameter.name)}</code>`,
    `${parameter.in}${parameter.required === true ? ", required" : ""}`,
    typeOf(parameter.schema),
    escape(parameter.description ?? ""),
  ]);
  const body = Object.values(operation.requestBody?.content ?? {}).map(({ schema }) => typeOf(schema));
  const answers = Object.entries(operation.responses).map(([status, { description = "", content = {} }]) => [
    status,
    Object.values(content)
      .map(({ schema }) => typeOf(schema))
      .join(", "),
    escape(description),
  ]);
  return `<section id="${operation.operationId}">
<h3><code>${method} ${escape(path)}</code></h3>
<p>${escape(operation.summary ?? "")}${scope === undefined ? "" : `. Over TCP: a token with scope ${scope}.`}</p>
${text(operation.description)}
${table(["parameter", "in", "type", "what it is"], parameters)}
${body.length === 0 ? "" : `<p>Body: ${body.join(", ")}</p>`}
${table(["status", "answer", ""], answers)}
</section>`;
}

function schemaSection(name: string, schema: Schema): string {
  const { required = [], properties = {} } = schema;
  const rows = Object.entries(properties).map(([key, property]) => [
    `<code>${escape(key)}</code>${required.includes(key) ? "" : " (optional)"}`,
    typeOf(property),
    escape(property.description ?? ""),
  ]);
  return `<section id="schema-${name}">
<h3>${escape(name)}</h3>
${text(schema.description)}
${table(["key", "type", "what it is"], rows)}
</section>`;
}

/** `integer, 1 to 1000`, `Volume`, `list of Volume`, `ok | degraded`, as HTML */
function typeOf({ $ref, type = "anything", items = {}, minimum, maximum, pattern, ...schema }: Schema): string {
  const options = schema.oneOf ?? schema.anyOf;
  if ($ref !== undefined) {
    const name = escape($ref.split("/").at(-1)!);
    return `<a href="#schema-${name}">${name}</a>`;
  }
  if (options !== undefined) return options.map(typeOf).join(" or ");
  if (schema.enum !== undefined) return schema.enum.map((value) => `<code>${escape(String(value))}</code>`).join(" | ");
  if (type === "array") return `list of ${typeOf(items)}`;
  const parts = [[type].flat().join(" or ")];
  if (minimum !== undefined) parts.push(`at least ${minimum}`);
  if (maximum !== undefined && maximum !== Number.MAX_SAFE_INTEGER) parts.push(`at most ${maximum}`);
  if (pattern !== undefined) parts.push(`<code>${escape(pattern)}</code>`);
  return parts.join(", ");
}

function table(headings: string[], rows: string[][]): string {
  if (rows.length === 0) return "";
  const head = headings.map((heading) => `<th scope="col">${heading}</th>`).join("");
  const body = rows.map((row) => `<tr>${row.map((cell) => `<td>${cell}</td>`).join("")}</tr>`);
  return `<div class="scroll"><table><thead><tr>${head}</tr></thead><tbody>${body.join("\n")}</tbody></table></div>`;
}

/** Markdown as far as the descriptions use it: paragraphs, tables, code. */
function text(markdown = ""): string {
  return markdown
    .split("\n\n")
    .filter(Boolean)
    .map((block) => {
      if (!block.startsWith("|")) return `<p>${inline(block)}</p>`;
      const [head, , ...rows] = block.split("\n").map((line) =>
        line
          .split("|")
          .slice(1, -1)
          .map((cell) => inline(cell.trim())),
      );
      return table(head, rows);
    })
    .join("\n");
}

const inline = (line: string): string => escape(line).replaceAll(/`([^`]+)`/g, "<code>$1</code>");

const entities: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };

function escape(line: string): string {
  return line.replaceAll(/[&<>"]/g, (character) => entities[character]);
}
