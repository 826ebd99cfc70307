// Centrifuge, the library under Centrifugo, by its own JSON protocol over WebSocket: its node, its broker in memory, no history.
//
// The HS256 token is verified before the upgrade, as by every other server here. Clients publish what subscribers get. It limits
// nothing and logs nothing. WS_PORT and REALTIME_JWT_SECRET as for ours.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/centrifugal/centrifuge"
)

// userOf returns the user of a valid token that has not expired, or "".
func userOf(token string, secret []byte) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	given, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return ""
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(parts[0] + "." + parts[1]))
	if !hmac.Equal(given, mac.Sum(nil)) {
		return ""
	}
	var header struct {
		Algorithm string `json:"alg"`
	}
	var claims struct {
		Subject string `json:"sub"`
		Expires int64  `json:"exp"`
	}
	for part, into := range map[int]any{0: &header, 1: &claims} {
		text, err := base64.RawURLEncoding.DecodeString(parts[part])
		if err != nil || json.Unmarshal(text, into) != nil {
			return ""
		}
	}
	if header.Algorithm != "HS256" || claims.Expires <= time.Now().Unix() {
		return ""
	}
	return claims.Subject
}

func main() {
	secret := []byte(os.Getenv("REALTIME_JWT_SECRET"))
	if len(secret) == 0 {
		log.Fatal("REALTIME_JWT_SECRET is not set: give it the secret that signed the tokens")
	}
	node, err := centrifuge.New(centrifuge.Config{LogLevel: centrifuge.LogLevelNone})
	if err != nil {
		log.Fatal(err)
	}
	node.OnConnect(func(client *centrifuge.Client) {
		client.OnSubscribe(func(_ centrifuge.SubscribeEvent, done centrifuge.SubscribeCallback) {
			done(centrifuge.SubscribeReply{}, nil)
		})
		client.OnPublish(func(_ centrifuge.PublishEvent, done centrifuge.PublishCallback) {
			done(centrifuge.PublishReply{}, nil)
		})
	})
	if err := node.Run(); err != nil {
		log.Fatal(err)
	}
	sockets := centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{MessageSizeLimit: 16 << 20})
	http.HandleFunc("/ws", func(answer http.ResponseWriter, request *http.Request) {
		user := userOf(request.URL.Query().Get("token"), secret)
		if user == "" {
			http.Error(answer, "Unauthorized", http.StatusUnauthorized)
			return
		}
		who := centrifuge.SetCredentials(request.Context(), &centrifuge.Credentials{UserID: user})
		sockets.ServeHTTP(answer, request.WithContext(who))
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("WS_PORT"), nil))
}
