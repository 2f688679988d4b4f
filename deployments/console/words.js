// The page's own words, in the two languages that it speaks. Those of the tasks come with tasks.json.
export const WORDS = {
  en: {
    readiness: "Readiness", parameters: "Parameters", stop: "Stop", examples: "Try", answer: "Answer", code: "The same from code",
    copy: "Copy", copied: "Copied", run: "Run", running: "Running…", ready: "ready", starting: "starting", asleep: "starts with its first request", missing: "not deployed",
    allReady: "All tasks are ready", someReady: "of", tasksReady: "tasks are ready", unreachable: "The server does not answer",
    tokens: "tokens", queue: "queue", tokenization: "tokenization", inference: "inference", total: "total", rate: "tokens/s",
    first: "first token", nothing: "Nothing was found.", stopped: "Stopped.", score: "score", default: "default",
    chat: "Chat", inputs: "Single request", you: "You", model: "Model", empty: "The answer is empty.",
    longest: "up to {n} tokens", clear: "New chat", key: "This server asks for a key:",
    text: "Text", question: "Question", context: "Context", message: "Message",
    tool: "Tool", example: "Example", notJson: "This is no JSON.", calls: "Calls", resultOf: "Result of {name}", answerCalls: "Write the results of the calls, then run.",
    live: "All models, live", route: "Model", replicas: "Replicas", perSecond: "Requests/s", failed: "Failed", p50: "p50", p99: "p99", waiting: "Waiting", slots: "Slots",
  },
  ko: {
    readiness: "준비 상태", parameters: "매개변수", stop: "중지", examples: "예시", answer: "답변", code: "코드로 똑같이",
    copy: "복사", copied: "복사됨", run: "실행", running: "실행 중…", ready: "준비됨", starting: "시작 중", asleep: "첫 요청이 오면 시작", missing: "배포되지 않음",
    allReady: "모든 작업이 준비되었습니다", someReady: "/", tasksReady: "개 작업 준비됨", unreachable: "서버가 응답하지 않습니다",
    tokens: "토큰", queue: "대기", tokenization: "토큰화", inference: "추론", total: "전체", rate: "토큰/초",
    first: "첫 토큰", nothing: "찾은 것이 없습니다.", stopped: "중지했습니다.", score: "점수", default: "기본값",
    chat: "대화", inputs: "단일 요청", you: "나", model: "모델", empty: "답변이 비어 있습니다.",
    longest: "최대 {n} 토큰", clear: "새 대화", key: "이 서버에는 키가 필요합니다:",
    text: "글", question: "질문", context: "본문", message: "메시지",
    tool: "도구", example: "예시 넣기", notJson: "JSON이 아닙니다.", calls: "호출", resultOf: "{name}의 결과", answerCalls: "호출 결과를 적은 뒤 실행하세요.",
    live: "모든 모델, 실시간", route: "모델", replicas: "레플리카", perSecond: "요청/초", failed: "실패", p50: "p50", p99: "p99", waiting: "대기 중", slots: "슬롯",
  },
};
