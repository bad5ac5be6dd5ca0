import compilerSelector from "@fastify/fast-json-stringify-compiler";

type Factory = ReturnType<typeof compilerSelector>;

/**
 * Compiles what writes an answer when the first such answer is written. Doing it for all routes and all their errors would be
 * a third of the time that a start takes, and most of them are never used.
 */
export const lazySerializers: Factory = (...environment) => {
  const compile = compilerSelector()(...environment);
  return (route) => {
    let serialize: ReturnType<typeof compile> | undefined;
    return (answer) => (serialize ??= compile(route))(answer);
  };
};
